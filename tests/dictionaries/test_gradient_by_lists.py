"""A step by lists of the latents that take part is the step over all latents, and it is taken when they are few."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.losses import Forward, PreActivation, Reconstruction, Term, total
from jax_interp.dictionaries.training import gradient
from jax_interp.dictionaries.training.train import init_learner, learn

D, M, ROWS = 6, 64, 20

KINDS = {
    "relu": variants.relu("x", 0.3, n_features=M),
    "jumprelu": variants.jumprelu("x", 0.3, n_features=M),
    "transcoder": variants.relu("x", 0.3, n_features=M, writes="y", centred=False),
}


@pytest.fixture(autouse=True)
def lists_of_any_length(monkeypatch):
    monkeypatch.setattr(gradient, "WORTHWHILE", 1.0)


def learner_of(config, dtype, offset):
    """With about a third of the latents on, none of its numbers 0."""
    n = 1 if config.writes is None else 2
    learner = init_learner(config, jax.random.key(0), (D,) * n, jnp.full((n * D,), 0.1, dtype))
    dictionary = learner.dictionary
    leaves, tree = jax.tree.flatten(dictionary)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf.astype(dtype) + 0.2 * jax.random.normal(key, leaf.shape, dtype) for leaf, key in zip(leaves, keys)]
    dictionary = jax.tree.unflatten(tree, moved)
    return dataclasses.replace(
        learner, dictionary=dataclasses.replace(dictionary, b_enc=dictionary.b_enc + jnp.asarray(offset, dtype))
    )


def gradient_of(config, dictionary, x, y, few):
    config = dataclasses.replace(config, sparse_gradient_sizes=few)

    def loss_of(dictionary, code):
        number = lambda a: jnp.asarray(a, x.dtype)
        y_hat = dictionary.reconstruct(code, x)
        dead = jnp.arange(M) % 7 == 0
        forward = Forward(dictionary, x, y, code, y_hat, dead, number(5.0), number(0.8), jax.random.key(0))
        value, parts = total(config.loss, forward)
        return value, (parts, code.firing_counts(M))

    return jax.jit(lambda d: gradient.loss_and_grad(config, config.loss, loss_of, d, x))(dictionary), loss_of


@pytest.mark.parametrize("kind", ["relu", "transcoder"])
def test_lists_products_and_autodiff_agree(kind):
    """Of a whole step, to float64's rounding. Every activation and term by itself: test_laws.py."""
    config = KINDS[kind]
    with jax.enable_x64(True):
        dictionary = learner_of(config, jnp.float64, -0.6).dictionary
        x, y = jax.random.normal(jax.random.key(2), (2, ROWS, D), jnp.float64)
        on = dictionary.activation.takes_part(dictionary, dictionary.linear(x) + dictionary.b_enc[None])
        some = int(jnp.sum(on))
        assert 0.03 < some / on.size < 0.8
        by_lists, loss_of = gradient_of(config, dictionary, x, y, (2, -(-some // ROWS)))
        by_products, _ = gradient_of(config, dictionary, x, y, ())
        plain = jax.jit(jax.value_and_grad(lambda d: loss_of(d, d.code(x)), has_aux=True))(dictionary)
        for got in (by_lists, by_products):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, plain)
        fires = by_lists[0][1][1]
        assert int(jnp.sum(fires)) == int(jnp.sum(dictionary.encode(x) != 0))


def test_the_way_is_chosen_by_how_many_take_part(monkeypatch):
    """With each way spoilt in turn: a batch with few goes by lists, a batch with many by products."""
    config = dataclasses.replace(KINDS["relu"], sparse_gradient_sizes=(16,))
    x = jax.random.normal(jax.random.key(2), (ROWS, D))

    def loss(offset):
        return float(learn(config, learner_of(config, jnp.float32, offset), x, jnp.ones(1))[1]["loss"])

    spoil = lambda code: dataclasses.replace(code, values=code.values * jnp.nan, pre=code.pre * jnp.nan)
    few, many = -1.5, 2.0
    real = gradient.dense_code_from_pre, gradient.entry_code_from_pre
    monkeypatch.setattr(gradient, "dense_code_from_pre", lambda *args: spoil(real[0](*args)))
    assert np.isfinite(loss(few))
    assert np.isnan(loss(many))
    monkeypatch.setattr(gradient, "dense_code_from_pre", real[0])
    monkeypatch.setattr(gradient, "entry_code_from_pre", lambda *args: spoil(real[1](*args)))
    assert np.isnan(loss(few))
    assert np.isfinite(loss(many))


def test_terms_that_need_all_latents_get_them():
    class Mine(Term):
        def __call__(self, forward):
            return jnp.sum(forward.code.pre**2)

    mine = Mine()
    assert gradient.list_lengths(KINDS["relu"], KINDS["relu"].loss) == (64,)
    assert gradient.list_lengths(KINDS["relu"], (Reconstruction(), mine)) == ()
    assert gradient.list_lengths(KINDS["jumprelu"], (Reconstruction(), PreActivation())) == ()


def test_numbers_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match=r"sparse_gradient_sizes=\(64, 0\): give latents per row, each at least 1"):
        variants.relu("x", sparse_gradient_sizes=(64, 0))
