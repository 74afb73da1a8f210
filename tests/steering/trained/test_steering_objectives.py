"""Objectives: closed forms of the losses and of their gradients, in float64, and directions that are known."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_steering

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering import Questions
from jax_interp.steering.trained import (
    BiPO,
    Completions,
    LanguageModelling,
    ReFTr1Config,
    RePS,
    ScaledVectorConfig,
    TrainedSteeringConfig,
    Vector,
    VectorConfig,
    train_steering,
)
from jax_interp.steering.trained.completions import ChangedTokens, texts_of
from jax_interp.steering.trained.likelihood import Steered, likelihood
from jax_interp.steering.trained.objectives import Batch
from jax_interp.steering.trained.objectives.objective import sampled
from jax_interp.surgery import Site
from jax_interp.training import QUIET


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Readout:
    """logits = x U, where x is the embedding of the token: a model in which the right vector is known.

    With a norm, x is divided by its root mean square first. Then only vectors along u can raise one logit without end.
    """

    embed: jax.Array
    unembed: jax.Array
    normed: bool = dataclasses.field(default=False, metadata={"static": True})
    blocks: tuple = ()

    def __call__(self, tokens, *, mask=None, taps=()):
        site = Site.open(taps, self.blocks)
        x = site("x", self.embed[tokens], "batch pos d")
        x = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True)) if self.normed else x
        return site.close(jnp.einsum("bpd,dv->bpv", x, self.unembed, precision="highest"))


SITE, D, VOCAB, TARGET, OTHER = ("x",), 8, 6, 4, 5
RNG = np.random.default_rng(1)
U = RNG.standard_normal(D)
U /= np.linalg.norm(U)


@functools.cache
def planted(normed=False):
    """A token whose logit is 3 x · u; every other logit is 0. Texts with the concept have embeddings along u."""
    unembed = np.zeros((D, VOCAB), np.float32)
    unembed[:, TARGET] = 3 * U
    embed = 0.05 * RNG.standard_normal((VOCAB, D))
    embed[2] += 2 * U  # token 2 shows the concept
    return Readout(jnp.asarray(embed, jnp.float32), jnp.asarray(unembed), normed)


def answers(prompt=(0, 1, 2, 3)):
    prompts = tuple(tuple(RNG.choice(prompt, 3).tolist()) for _ in range(12))
    return prompts, ((TARGET,),) * 12


@functools.cache
def pairs():
    return Questions("planted", *answers(), ((OTHER,),) * 12)


def cosine(v):
    return float(v @ U / np.linalg.norm(v))


CASES = {
    "language modelling": (VectorConfig(), LanguageModelling(), Completions(*answers())),
    "a scale of its own": (ScaledVectorConfig(), LanguageModelling((0.5, 1.0)), Completions(*answers())),
    "RePS": (VectorConfig(norm=0.3), RePS(), pairs()),
    "BiPO": (VectorConfig(), BiPO(), pairs()),
    "ReFT-r1": (ReFTr1Config(top=1), LanguageModelling(), Completions(*answers((2, 2, 3)))),
}


FAST = ("RePS",)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in FAST else pytest.mark.slow) for c in CASES])
@pytest.mark.filterwarnings("ignore:.*detectors fire on none")
def test_training_finds_the_planted_direction(case):
    """Every seed finds it. A ReFT-r1 that starts on the wrong side of all texts has no gradient: one seed has to."""
    intervention, objective, data = CASES[case]
    config = TrainedSteeringConfig(
        SITE, intervention, objective, seeds=(0, 1, 2, 3), steps=150, batch=12, learning_rate=0.1
    )
    found = train_steering(planted(normed=True), {"planted": data}, config, log=QUIET)
    vectors = [np.asarray(found.at(i).vector().vectors["x"], np.float64) for i in range(4)]
    cosines = [cosine(v) for v in vectors if v.any()]
    if case == "ReFT-r1":
        assert max(cosines) > 0.95, cosines
    else:
        assert len(cosines) == 4
        assert min(cosines) > 0.95, cosines


def pair_batch(dtype):
    """Two pairs of completions of different lengths, and their reference."""
    prompts, wanted, other = ((0, 1), (2, 0, 3)), ((4, 4), (4,)), ((5,), (5, 0, 5))
    sides = [texts_of(prompts, side, ChangedTokens()) for side in (wanted, other)]
    longest = max(side.tokens.shape[1] for side in sides)
    sides = [jax.tree.map(jnp.asarray, side.padded(longest)) for side in sides]
    model = planted()
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), dataclasses.replace(model, unembed=model.unembed + 0.3))
    model = dataclasses.replace(model, unembed=model.unembed.at[:, OTHER].set(jnp.asarray(0.7 * U[::-1].copy(), dtype)))
    reference = jnp.stack([likelihood(model, side).log_p for side in sides], axis=1)
    return model, Batch(sides[0], sides[1], reference, jnp.asarray([0.1, 0.9], dtype))


def by_hand(model, batch, v, factors, normalise):
    """RePS and its gradient from log softmax alone, text by text, with NumPy in float64."""
    E, W = (np.asarray(a, np.float64) for a in (model.embed, model.unembed))
    loss, grad, n = 0.0, np.zeros(D), len(factors)

    def side(texts, row, change, jacobian):
        tokens, targets, real = (np.asarray(a)[row] for a in (texts.tokens, texts.targets, texts.mask))
        total, slope = 0.0, np.zeros(D)
        for t in np.flatnonzero(targets):
            x = E[tokens[t - 1]]
            logits = (x + change(x)) @ W
            p = np.exp(logits - logits.max())
            p /= p.sum()
            total += np.log(p[tokens[t]])
            slope += jacobian(x).T @ (W[:, tokens[t]] - W @ p)
        length = targets.sum() if normalise == "completion" else real.sum()
        return total, slope, length

    square = v @ v

    def removal(x):
        return -max(x @ v, 0.0) * v / square

    def removal_slope(x):  # d removal / d v, [d, d]
        if x @ v <= 0:
            return np.zeros((D, D))
        return -(np.outer(v, x) + (x @ v) * np.eye(D)) / square + 2 * (x @ v) * np.outer(v, v) / square**2

    for row, f in enumerate(factors):
        odds = float(batch.reference[row, 0] - batch.reference[row, 1])
        promoted = (lambda x, f=f: f * v, lambda x, f=f: f * np.eye(D))
        removed = (removal, removal_slope)
        for way, win, lose, surprise in (
            (promoted, batch.wanted, batch.other, -odds),
            (removed, batch.other, batch.wanted, odds),
        ):
            weight = max(surprise, 1.0)
            w, dw, lw = side(win, row, *way)
            m, dm, lm = side(lose, row, *way)
            delta, slope = weight * w / lw - m / lm, weight * dw / lw - dm / lm
            loss += np.log1p(np.exp(-delta)) / (2 * n)
            grad -= slope / (1 + np.exp(delta)) / (2 * n)
    return loss, grad


@pytest.mark.parametrize("normalise", ["completion", "text"])
def test_reps_and_its_gradient_are_those_computed_by_hand(normalise):
    with jax.enable_x64(True):
        model, batch = pair_batch(jnp.float64)
        objective = RePS((0.5, 2.0), normalise=normalise)
        v = np.random.default_rng(2).standard_normal(D)
        loss = lambda v: objective.loss(Steered(model, SITE, (Vector(v),), None), batch, jnp.float64(0.0))[0]
        value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(v))
        want, slope = by_hand(model, batch, v, (0.5, 2.0), normalise)
    assert float(value) == pytest.approx(want, rel=1e-6)  # the strength of a row is float32
    np.testing.assert_allclose(grad, slope, rtol=1e-5, atol=1e-9)
    assert np.abs(slope).max() > 0.01


def test_negative_steering_is_steering_with_the_negative_vector():
    model, batch = pair_batch(jnp.float32)
    v = jnp.asarray(np.random.default_rng(3).standard_normal(D), jnp.float32)
    objective = RePS((1.0,), suppress="negative")
    loss = jax.jit(
        lambda batch, v: objective.loss(Steered(model, SITE, (Vector(v),), None), batch, jnp.float32(0.0))[0]
    )
    assert batch.other is not None
    assert batch.reference is not None
    swapped = Batch(batch.other, batch.wanted, batch.reference[:, ::-1], batch.draws)
    np.testing.assert_allclose(loss(batch, v), loss(swapped, -v), rtol=1e-6)


@pytest.mark.slow
def test_bipo_is_dpo_with_a_sign():
    """-log σ(s β margin): at the vector 0 the loss is log 2, and the signs of the rows follow their draws."""
    model, batch = pair_batch(jnp.float32)
    zero, v = jnp.zeros(D), jnp.asarray(U, jnp.float32)
    loss = lambda objective, v: float(
        objective.loss(Steered(model, SITE, (Vector(v),), None), batch, jnp.float32(0.0))[0]
    )
    assert loss(BiPO(), zero) == pytest.approx(np.log(2), rel=1e-5)
    assert batch.other is not None
    assert batch.reference is not None
    gain = {}
    for s in (1.0, -1.0):
        steered = Steered(model, SITE, (Vector(s * v),), None)
        sides = [steered.likelihood(texts, 1.0).log_p for texts in (batch.wanted, batch.other)]
        gain[s] = np.asarray(sides[0] - sides[1] - batch.reference[:, 0] + batch.reference[:, 1])
    margins = np.array([gain[1.0][0], -gain[-1.0][1]])  # the draws are 0.1 and 0.9
    assert loss(BiPO(0.3), v) == pytest.approx(np.mean(np.log1p(np.exp(-0.3 * margins))), rel=1e-5)
    assert loss(BiPO(0.3, both=False), v) == pytest.approx(np.mean(np.log1p(np.exp(-0.3 * gain[1.0]))), rel=1e-5)


def test_factors_are_drawn_uniformly():
    draws = jnp.asarray(np.random.default_rng(0).random(4000), jnp.float32)
    found, counts = np.unique(sampled((1.0, 2.0, 5.0), draws), return_counts=True)
    np.testing.assert_array_equal(found, [1, 2, 5])
    assert (np.abs(counts / 4000 - 1 / 3) < 0.03).all()
    assert float(sampled((1.0, 2.0), jnp.asarray([np.float32(1 - 2**-25)]))[0]) == 2


def test_completions_without_pairs_are_refused():
    config = TrainedSteeringConfig(("blocks.0.resid_post",), VectorConfig(norm=1.0), RePS())
    with pytest.raises(UserError, match="give Questions for 'a'"):
        train_steering(tiny_steering.model(), {"a": tiny_steering.completions()}, config, log=QUIET)
    with pytest.raises(UserError, match="nothing to train on"):
        train_steering(tiny_steering.model(), {}, config, log=QUIET)


@pytest.mark.parametrize("address", ["logits_of_nothing", "blocks.0.attn.z"])
def test_an_address_without_vectors_of_tokens_is_refused(address):
    config = TrainedSteeringConfig((address,))
    with pytest.raises(UserError):
        train_steering(tiny_steering.model(), {"a": tiny_steering.completions()}, config, log=QUIET)
