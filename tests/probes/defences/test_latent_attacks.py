"""Attacks on named values: a known optimum, budgets that hold, and the alarm that is evaded only if it is seen."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes import LinearProbe
from jax_interp.probes.monitors.defences import Alarm, Defended, LatentAttack, attack, mean_norm
from jax_interp.probes.monitors.defences.examples import Texts
from jax_interp.probes.monitors.defences.latent_attack import edits_of, projected
from jax_interp.surgery import Site
from tests.probes.defences.tiny_requests import model, texts, with_other_padding

D = 6


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Logits of two tokens from the sum of the embeddings so far: linear, so that the best attack is known."""

    E: jax.Array
    U: jax.Array
    blocks: tuple = ()

    def __call__(self, tokens, *, mask=None, taps=()):
        site = Site.open(taps, self.blocks)
        x = jnp.cumsum(site("embed", self.E[tokens]), axis=1)
        return site.close(site("logits", site("stream", x) @ self.U, "batch pos vocab"))


def sums():
    rng = np.random.default_rng(0)
    E, U = rng.normal(size=(2, D)), rng.normal(size=(D, 2))
    return Sums(jnp.asarray(E, jnp.float32), jnp.asarray(U, jnp.float32))


def two_texts():
    """A request of two tokens and of one; the response predicts the word 1 at its first token."""
    tokens = jnp.asarray([[0, 1, 0, 1, 0], [0, 1, 1, 0, 0]])
    span = lambda *rows: jnp.asarray([[i in row for i in range(5)] for row in rows])
    real = span(range(5), range(4))
    return Texts(tokens, real, span((0, 1), (0,)), span((2, 3), (1, 2)), jnp.asarray([True, True]))


def linear_alarm(direction, threshold):
    probe = LinearProbe(jnp.asarray(direction, jnp.float32), jnp.zeros(()), jnp.zeros(()))
    return Alarm(probe, jnp.asarray(threshold, jnp.float32), "stream")


def test_the_best_perturbation_of_a_linear_model_is_found():
    """It is ε (u₁ - u₀) / ‖u₁ - u₀‖ at each token of the request, and 0 elsewhere."""
    base, batch, size = sums(), two_texts(), 0.7
    found = attack(LatentAttack(("embed",), size, steps=60), Defended(base), batch, jax.random.key(0))
    best = np.asarray(base.U[:, 1] - base.U[:, 0])
    want = np.where(np.asarray(batch.request)[..., None], size * best / np.linalg.norm(best), 0)
    np.testing.assert_allclose(found.perturbation["embed"], want, atol=0.01)
    adam = attack(LatentAttack(("embed",), size, steps=60, optimizer="adam"), Defended(base), batch, jax.random.key(0))
    assert (adam.loss > 1.2 * found.loss).all()  # it follows the signs of the gradient


def test_an_attack_that_sees_the_alarm_evades_it_along_another_direction():
    """The alarm reads a direction that the answer does not need. Seen, it is silenced; not seen, it stays on."""
    base, batch = sums(), two_texts()
    answer = np.asarray(base.U[:, 1] - base.U[:, 0])
    direction = np.random.default_rng(1).normal(size=D)
    direction -= answer * (direction @ answer) / (answer @ answer)
    stream = np.cumsum(np.asarray(base.E)[np.asarray(batch.tokens)], axis=1) @ direction
    threshold = stream[np.asarray(batch.response)].min() - 0.5
    defended = Defended(base, linear_alarm(direction, threshold))
    size = 2 * (stream.max() - threshold) / np.linalg.norm(direction) + 5
    out = {}
    for seen in (0.0, 1.0):
        budget = LatentAttack(("embed",), float(size), steps=60, alarm=seen)
        out[seen] = attack(budget, defended, batch, jax.random.key(0)).goes_out
    assert not out[0.0].any()
    assert out[1.0].all()


def test_no_budget_changes_nothing():
    base, batch = model(), texts()
    clean = jax.jit(Defended(base).__call__)(batch)[0]
    found = attack(LatentAttack(("embed",), 0.0, steps=3), Defended(base), batch, jax.random.key(0))
    np.testing.assert_array_equal(found.perturbation["embed"], 0)
    np.testing.assert_array_equal(jax.jit(lambda x: Defended(base)(batch, edits_of(x))[0])(found.perturbation), clean)


@pytest.fixture(scope="module")
def attacked():
    budget = LatentAttack(("embed", "blocks.1.attn.z"), 0.3, steps=6, restarts=2)
    return budget, attack(budget, Defended(model()), texts(), jax.random.key(0))


def test_the_budget_holds_at_every_token_and_address(attacked):
    budget, found = attacked
    batch = texts()
    for x in found.perturbation.values():
        size = np.sqrt((np.asarray(x).reshape(*x.shape[:2], -1) ** 2).sum(-1))
        assert size.max() <= budget.size * (1 + 1e-5)
        assert size[np.asarray(batch.request)].mean() > 0.1
        assert not size[~np.asarray(batch.request)].any()


def test_ids_at_padding_and_the_other_examples_never_count(attacked):
    budget, found = attacked
    same = attack(budget, Defended(model()), with_other_padding(texts()), jax.random.key(0))
    np.testing.assert_allclose(same.loss, found.loss, rtol=1e-5)
    one = dataclasses.replace(budget, restarts=1)
    rows = lambda n: jax.tree.map(lambda x: x[:n], texts())
    few, fewer = (attack(one, Defended(model()), rows(n), jax.random.key(0)).loss for n in (5, 3))
    np.testing.assert_allclose(few[:3], fewer, rtol=1e-4)
    assert (np.asarray(found.loss)[:5] <= np.asarray(few) + 1e-5).all()  # more starts are never worse


def test_projection_is_onto_the_ball_of_each_token():
    rng = np.random.default_rng(0)
    x, request = rng.normal(size=(2, 3, 2, 4)).astype(np.float32), np.array([[1, 1, 0], [0, 1, 1]], bool)
    x[0, 0] = 0.01
    got = np.asarray(projected({"v": jnp.asarray(x)}, 0.5, jnp.asarray(request))["v"])
    size = np.sqrt((x**2).sum((2, 3), keepdims=True))
    np.testing.assert_allclose(got, np.where(request[..., None, None], x * np.minimum(1, 0.5 / size), 0), rtol=1e-5)
    np.testing.assert_array_equal(projected({"v": jnp.zeros((1, 1, 2))}, 0.5, jnp.ones((1, 1), bool))["v"], 0)


def test_sizes_are_given_in_units_of_a_values_own_norm():
    base, batch = sums(), two_texts()
    from jax_interp.probes.labelled_tokens import LabelledTokens

    spans = {"request": np.asarray(batch.request), "response": np.asarray(batch.response)}
    examples = LabelledTokens(
        "two", np.asarray(batch.tokens), np.asarray(batch.mask), np.asarray(batch.mask), np.ones(2, int), ("a", "b"),
        spans=spans,
    )  # fmt: skip
    norms = np.linalg.norm(np.asarray(base.E), axis=1)
    np.testing.assert_allclose(mean_norm(base, examples, "embed"), (2 * norms[0] + norms[1]) / 3, rtol=1e-5)


def test_what_is_no_budget_is_refused():
    with pytest.raises(UserError, match="give a tuple of addresses"):
        LatentAttack("embed", 1.0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is at least 0"):
        LatentAttack(("embed",), float("nan"))
