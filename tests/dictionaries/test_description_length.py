"""Description lengths against entropies in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from world_texts import compared, oracle, world

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation import controls
from jax_interp.dictionaries.evaluation.benchmarks.description_length import description_length, measures, spread_of
from jax_interp.dictionaries.evaluation.benchmarks.measure import DICTIONARY, RANDOM

WORLD = world()
ROWS = [WORLD.sample(jax.random.key(i), 2048)[0] for i in range(8)]


def entropy(*p):
    return -sum(q * np.log2(q) for q in p)


def test_the_bits_of_the_true_features_are_their_entropies():
    """One bin for "on" (strengths are 1 ± 0.05, the step is 1): each latent is a coin with its known probability."""
    got = description_length(oracle(WORLD), ROWS, step=1.0)
    wanted = 3 * entropy(0.15, 0.85) + 9 * entropy(0.03, 0.97) + 8 * entropy(0.05, 0.95)
    assert got.bits == pytest.approx(wanted, rel=0.02)
    assert got.rows == 8 * 2048
    z = np.concatenate([np.asarray(oracle(WORLD).encode(x)) for x in ROWS])
    of_each = [entropy(p, 1 - p) for p in (z.round() != 0).mean(0)]
    np.testing.assert_allclose(got.by_latent, of_each, atol=1e-6)


def test_the_error_is_that_of_rounding():
    got = description_length(oracle(WORLD), ROWS, step=1.0)
    x = np.concatenate([np.asarray(x, np.float64) for x in ROWS])
    z = np.concatenate([np.asarray(oracle(WORLD).encode(x), np.float64) for x in ROWS])
    x_hat = z.round() @ np.asarray(WORLD.directions, np.float64)
    assert got.fvu == pytest.approx(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-4)


def test_many_values_have_the_entropy_of_their_histogram():
    d = 3
    rows = [jax.random.normal(jax.random.key(i), (500, d)) for i in range(3)]
    got = description_length(controls.Basis(2 * jnp.eye(d), jnp.zeros(d)), rows, step=0.5)
    q = np.round(np.concatenate([np.asarray(x) for x in rows]) * 4 / 0.5)  # z = 2x, and rows of W have norm 2
    wanted = [entropy(*(np.unique(q[:, i], return_counts=True)[1] / len(q))) for i in range(d)]
    np.testing.assert_allclose(got.by_latent, wanted, atol=1e-9)


def test_scaling_latents_changes_nothing_and_a_dead_latent_is_free():
    import dataclasses

    true = oracle(WORLD)
    scale = jnp.linspace(0.5, 4, 20)
    threshold = true.activation
    scaled = dataclasses.replace(
        true,
        W_enc=true.W_enc * scale[None, :],
        b_enc=true.b_enc * scale,
        W_dec=true.W_dec / scale[:, None],
        activation=jax.tree.map(lambda t: t + jnp.log(scale), threshold),
    )
    a, b = (description_length(c, ROWS, 1.0) for c in (true, scaled))
    np.testing.assert_allclose(a.by_latent, b.by_latent, atol=1e-2)
    dead = dataclasses.replace(true, b_enc=true.b_enc.at[3].set(-1e6))
    assert description_length(dead, ROWS, 1.0).by_latent[3] == 0


def test_the_true_features_are_a_better_description_than_random_ones():
    bits, fvu = measures(compared(WORLD), ROWS, precision=spread_of(ROWS) ** -1)
    assert fvu.estimates[DICTIONARY].high < fvu.estimates[RANDOM].low
    assert bits.estimates[DICTIONARY].low <= bits.estimates[DICTIONARY].value <= bits.estimates[DICTIONARY].high


def test_what_has_no_description_is_refused():
    for rows, step, message in (
        ([], 1.0, "no rows"),
        (ROWS, 0.0, "step=0.0"),
        ([jnp.ones((4, 20))], 1.0, "all rows are equal"),
        ([jnp.full((4, 20), jnp.nan)], 1.0, "not finite|all rows are equal"),
    ):
        with pytest.raises(UserError, match=message):
            description_length(oracle(WORLD), rows, step)
    with pytest.raises(UserError, match="at least 4"):
        list(measures(compared(WORLD), ROWS[:2]))
