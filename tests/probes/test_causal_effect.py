"""Probes as causes: where the model is linear, every effect is known; intervals, controls, padding, and refusals."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from small_models import CONFIGS, peaky
from toy import Block, Toy

from jax_interp import Add, UserError, at, edit
from jax_interp.circuits.metrics import LogitDifference
from jax_interp.probes import LabelledTokens, MassMean, Nth, fit_probes, gather
from jax_interp.probes.causal_effect import CausalConfig, ProbabilityDifference, causal_effect
from jax_interp.probes.moves import Moves, moves_along

D, N, LAYERS = 8, 400, 2
SITES = [f"blocks.{layer}.resid_post" for layer in range(LAYERS)]


def examples(n: int, *, name: str = "made up", first: int = 1) -> LabelledTokens:
    """Each example is a token of its own after BOS. Odd tokens are of the positive class."""
    tokens = np.stack([np.zeros(n, np.int32), np.arange(first, first + n, dtype=np.int32)], axis=1)
    mask = np.ones(tokens.shape, bool)
    readable = np.array([[False, True]]).repeat(n, axis=0)
    return LabelledTokens(name, tokens, mask, readable, (tokens[:, 1] % 2).astype(np.int32), ("false", "true"))


@pytest.fixture(scope="module")
def linear():
    """A model that adds nothing to its embedding, and reads logits from it along θ. The classes differ along θ, and
    share a large variance along another direction, at an angle of 60 degrees."""
    rng = np.random.default_rng(0)
    theta, other = np.eye(D)[0], np.cos(np.pi / 3) * np.eye(D)[0] + np.sin(np.pi / 3) * np.eye(D)[1]
    y = np.arange(N + 1) % 2
    noise = 2 * rng.standard_normal((N + 1, 1)) * other + 0.2 * rng.standard_normal((N + 1, D))
    for rows in (slice(1, None, 2), slice(2, None, 2)):  # the means of the two classes differ by θ exactly
        noise[rows] -= noise[rows].mean(axis=0)
    x = (y - 0.5)[:, None] * theta + noise
    U = np.stack([np.zeros(D), theta], axis=1)
    model = Toy(jnp.asarray(x, jnp.float32), [Block(jnp.zeros((D, D)))] * LAYERS, jnp.asarray(U, jnp.float32))
    data = examples(N)
    vectors = gather(model, data, "blocks.*.resid_post")
    fitted = {"mass-mean": fit_probes(MassMean(), vectors), "LDA": fit_probes(MassMean(covariance=True), vectors)}
    return model, data, moves_along(fitted, vectors, random=2, seed=1), x[1:], theta


def logit(logits):
    return logits[:, -1, 1] - logits[:, -1, 0]


def test_a_linear_read_out_has_the_effects_of_the_formula(linear):
    """Mass-mean moves one mean to the other, so its effect is exactly 1. Any v has the effect u·v / u·(μ₊ - μ₋)."""
    model, data, moves, x, theta = linear
    config = CausalConfig(ranges=((0, 1), (1, 2), (0, 2)), alphas=(0.5, 1.0), batch=200)
    effect = causal_effect(model, data, moves, logit, config)
    means = [x[data.labels == label].mean(axis=0) for label in (0, 1)]
    assert effect.gap().value == pytest.approx((means[1] - means[0]) @ theta, rel=1e-4)
    found = {}
    for row in effect.rows():
        which = [site in row["sites"] for site in SITES]
        pushed = row["alpha"] * moves.of[row["direction"]][which].sum(axis=0)
        expected, layers = pushed @ theta / ((means[1] - means[0]) @ theta), sum(which)
        assert row["to_positive"].value == pytest.approx(expected, abs=1e-4)
        assert row["to_negative"].value == pytest.approx(expected, abs=1e-4)
        found[row["direction"], layers, row["alpha"]] = row["to_positive"].value
    assert found["mass-mean", 1, 1.0] == pytest.approx(1, abs=1e-4)
    assert found["mass-mean", 2, 0.5] == pytest.approx(1, abs=1e-4)
    # LDA reads orthogonally to the shared variance, 30 degrees from θ: it moves cos² 30° of the way
    assert found["LDA", 1, 1.0] == pytest.approx(0.75, abs=0.02)
    assert np.abs(moves.of["orthogonal"][0] @ (means[1] - means[0])) < 1e-5
    assert effect.moved.values.shape == (len(moves.of), 3, 2, N)


def test_the_better_reader_is_the_worse_cause(linear):
    model, data, moves, x, _ = linear
    read = lambda name: np.mean((x @ moves.of[name][0] > np.median(x @ moves.of[name][0])) == (data.labels == 1))
    effect = causal_effect(model, data, moves, ProbabilityDifference([1], [0]), CausalConfig(ranges=((0, 1),)))
    assert read("LDA") > 0.95 > 0.75 > read("mass-mean")
    for way in ("positive", "negative"):
        assert effect.nie("mass-mean", way, minus="LDA").low > 0
        assert effect.nie("LDA", way).value > 0.5


def test_controls_have_the_length_and_not_the_effect(linear):
    model, data, moves, _, _ = linear
    assert moves.controls == ("random 0", "random 1", "orthogonal", "shuffled labels")
    for name in moves.controls:
        np.testing.assert_allclose(moves.norms()[name], moves.norms()["mass-mean"], rtol=1e-5)
    effect = causal_effect(model, data, moves, logit, CausalConfig(ranges=((0, 1),)), unrelated=examples(50))
    x, v = np.asarray(model.E)[1:51], moves.of["mass-mean"][0]
    logits = lambda x: log_softmax(x @ np.asarray(model.U), axis=1)
    kl = lambda q: np.sum(np.exp(logits(x)) * (logits(x) - logits(q)), axis=1).mean()
    assert effect.damage is not None
    assert effect.damage.values[0, 0, 0] == pytest.approx((kl(x + v) + kl(x - v)) / 2, rel=1e-3)
    norm = np.linalg.norm(np.asarray(model.E)[1:], axis=1).mean()
    assert effect.relative_norm.values[0, 0] == pytest.approx(np.linalg.norm(v) / norm, rel=1e-4)
    assert abs(effect.nie("orthogonal").value) < abs(effect.nie("mass-mean").value) / 2
    text = "\n".join(effect.lines())
    assert "orthogonal (control)" in text
    assert "KL on unrelated text" in text
    assert effect.to_json()["rows"][0]["to_positive"]["value"] == pytest.approx(1, abs=1e-4)


def test_intervals_hold_what_they_promise(linear):
    """Of many sets of 60 examples, about 95 % have an interval that contains the effect in all examples."""
    model, data, moves, _, _ = linear
    rng, inside = np.random.default_rng(0), []
    only = Moves(moves.sites, {"LDA": moves.of["LDA"]})
    effect = causal_effect(model, data, only, ProbabilityDifference([1], [0]), CausalConfig(ranges=((0, 1),)))
    truth = effect.nie("LDA").value
    for _ in range(200):
        rows = np.concatenate([rng.choice(np.flatnonzero(data.labels == c), 60, replace=False) for c in (0, 1)])
        part = dataclasses.replace(
            effect, labels=data.labels[rows], groups=np.arange(120), clean=effect.clean[rows],
            moved=effect.moved.sel(example=rows.tolist()),
        )  # fmt: skip
        estimate = part.nie("LDA", draws=200)
        inside.append(estimate.low <= truth <= estimate.high)
    assert 0.9 < np.mean(inside) <= 1


@pytest.mark.slow
def test_padding_and_batches_change_nothing():
    rng, model = np.random.default_rng(0), peaky(CONFIGS["gpt2-like"])
    lengths = rng.integers(5, 9, 12)
    tokens = rng.integers(2, 61, (12, 8)).astype(np.int32)
    padded = np.arange(8)[None] < lengths[:, None]
    labels = (np.arange(12) % 2).astype(np.int32)
    data = LabelledTokens("padded", tokens, padded, padded & (np.arange(8) > 0), labels, ("a", "b"))
    moves = Moves(("blocks.0.resid_post", "blocks.1.resid_post"), {"some": rng.standard_normal((2, 32))})
    answers = rng.integers(0, 61, (2, 12))
    metric = LogitDifference(jnp.asarray(answers[0]), jnp.asarray(answers[1]))
    effect = causal_effect(model, data, moves, metric, CausalConfig(rule=Nth(-2), batch=5, at_once=2))
    for row in (0, 5, 11):
        n = lengths[row]
        own = LogitDifference(int(answers[0, row]), int(answers[1, row]))
        assert effect.clean[row] == pytest.approx(
            float(own(model(jnp.asarray(tokens[row : row + 1, :n])))[0]), abs=1e-3
        )
        sign = 1 if labels[row] == 0 else -1
        shift = [
            at(site, Add(jnp.asarray(sign * v, jnp.float32)), pos=-2)
            for site, v in zip(moves.sites, moves.of["some"], strict=True)
        ]
        moved = float(own(edit(model, *shift)(jnp.asarray(tokens[row : row + 1, :n])))[0])
        assert effect.moved.values[0, 0, 0, row] == pytest.approx(moved, abs=1e-3)


def test_what_has_no_answer_is_refused(linear):
    model, data, moves, _, _ = linear
    blind = causal_effect(model, data, moves, lambda logits: jnp.sin(1e3 * logits[:, -1, 1]))
    with pytest.raises(UserError, match="does not tell true from false"):
        blind.nie("LDA")
    effect = causal_effect(model, data, moves, logit, CausalConfig(alphas=(1.0, 2.0)))
    with pytest.raises(UserError, match="name one entry of alpha"):
        effect.nie("LDA")
    with pytest.raises(UserError, match="no direction 'LR'"):
        effect.nie("LR", alpha=1.0)
    with pytest.raises(UserError, match="two classes"):
        causal_effect(model, data.take(data.labels == 1), moves, logit)
    with pytest.raises(UserError, match="one number for each"):
        causal_effect(model, data, moves, lambda logits: logits[:, -1])
    with pytest.raises(UserError, match="does not name some of the 2 sites"):
        causal_effect(model, data, moves, logit, CausalConfig(ranges=((1, 4),)))
    with pytest.raises(UserError, match="not finite"):
        causal_effect(model, data, moves, lambda logits: jnp.log(logits[:, -1, 1]))
    vectors = gather(model, data, SITES[0])
    narrow = fit_probes(MassMean(), vectors)
    with pytest.raises(UserError, match="the vectors are at"):
        moves_along({"mass-mean": narrow}, gather(model, data, SITES[1]))
    with pytest.raises(UserError, match="several entries of seed"):
        moves_along({"mass-mean": fit_probes(MassMean(), vectors, seeds=(0, 1))}, vectors)
