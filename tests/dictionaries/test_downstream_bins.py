"""Losses by position and by context length: sums by hand, and what padding on the left does to the two."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.evaluation import downstream
from jax_interp.dictionaries.evaluation.evaluate import evaluate

NAMES = ("clean", "spliced", "zero", "mean", "kl_spliced", "kl_zero", "kl_mean")
RNG = np.random.default_rng(0)


def losses(shape):
    """Clean is 1, spliced 2, zero 5, mean 4 on average, growing along the sequence."""
    base = dict(zip(NAMES, (1.0, 2.0, 5.0, 4.0, 0.5, 2.0, 1.0)))
    return {name: level * (1 + 0.1 * np.arange(shape[1])) + 0.01 * RNG.random(shape) for name, level in base.items()}


def test_bins_and_scores_equal_sums_by_hand():
    keep = RNG.random((6, 21)) < 0.9
    counted = downstream.prediction_mask(keep)
    batch = losses(counted.shape)
    total, context = None, None
    for part in (slice(0, 4), slice(4, 6)):
        some = {name: a[part] for name, a in batch.items()}
        total = downstream.add_by_position(total, some, counted[part])
        context = downstream.add_by_index(context, some, counted[part], downstream.context_length(keep[part]))
    got = downstream.CrossEntropy.from_sums(total, context)
    mean = {name: a[counted].mean() for name, a in batch.items()}
    assert got.predictions == counted.sum()
    assert got.recovered_zero == pytest.approx((mean["zero"] - mean["spliced"]) / (mean["zero"] - mean["clean"]))
    assert got.kl_score_zero == pytest.approx(1 - mean["kl_spliced"] / mean["kl_zero"])
    assert got.kl_score_mean == pytest.approx(1 - mean["kl_spliced"] / mean["kl_mean"])
    at = lambda name, where: batch[name][where & counted].mean()
    place = np.broadcast_to(np.arange(20), counted.shape)
    length = np.cumsum(keep, axis=1)[:, :-1]
    recovered = lambda where: (at("zero", where) - at("spliced", where)) / (at("zero", where) - at("clean", where))
    np.testing.assert_allclose(got.recovered_zero_by_position, [recovered(place == p) for p in range(20)])
    for bins, index in ((got.position_bins, place), (got.context_bins, length)):
        pairs = list(zip(bins.edges, bins.edges[1:]))
        assert [low for low, _ in pairs] == ([0, 1, 2, 4, 8, 16] if index is place else [1, 2, 4, 8, 16])
        assert bins.predictions == [((index >= i) & (index < j) & counted).sum() for i, j in pairs]
        within = [(index >= i) & (index < j) for i, j in pairs]
        np.testing.assert_allclose(bins.clean, [at("clean", w) for w in within])
        np.testing.assert_allclose(bins.kl_spliced, [at("kl_spliced", w) for w in within])
        np.testing.assert_allclose(bins.recovered_zero, [recovered(w) for w in within])


def test_the_mean_of_scores_is_not_the_score_of_the_means():
    """Averaging the recovered fraction over batches (dictionary_learning) lets a batch that ablation hardly hurts
    decide."""
    easy, hard = (dict.fromkeys(NAMES, np.full((1, 4), 1.0)) for _ in range(2))
    easy |= {"spliced": np.full((1, 4), 1.1), "zero": np.full((1, 4), 1.2)}  # recovers 1/2
    hard |= {"spliced": np.full((1, 4), 1.1), "zero": np.full((1, 4), 11.0)}  # recovers .99
    counted, total, each = np.ones((1, 4), bool), None, []
    for batch in (easy, hard):
        total = downstream.add_by_position(total, batch, counted)
        each.append(downstream.CrossEntropy.from_sums(downstream.add_by_position(None, batch, counted)).recovered_zero)
    assert np.mean(each) == pytest.approx(0.745)
    assert downstream.CrossEntropy.from_sums(total).recovered_zero == pytest.approx((6.1 - 1.1) / (6.1 - 1))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Shrink:
    factor: jax.Array

    def encode(self, x):
        return x

    def decode(self, z):
        return z * self.factor


def test_evaluate_with_and_without_the_first_position():
    model, address = toy(), "blocks.1.resid_post"
    batches = [batch_at(i) for i in range(2)]
    result = evaluate(model, address, Shrink(jnp.float32(0.5)), batches)
    assert result.reconstruction_after_first is None  # keep leaves BOS out
    assert result.cross_entropy_after_first is None
    assert result.cross_entropy.context_bins.edges[0] == 1
    assert result.cross_entropy.position_bins.edges[0] == 1  # nothing at position 0
    everywhere = [(tokens, jnp.ones_like(keep)) for tokens, keep in batches]
    later = [(tokens, keep.at[:, 0].set(False)) for tokens, keep in everywhere]
    whole = evaluate(model, address, Shrink(jnp.float32(0.5)), everywhere)
    apart = evaluate(model, address, Shrink(jnp.float32(0.5)), later)
    got, want = whole.reconstruction_after_first, apart.reconstruction
    for name, value in dataclasses.asdict(want).items():
        if value is not None:
            assert getattr(got, name) == pytest.approx(value, rel=1e-4), name
    assert whole.reconstruction.tokens == got.tokens + 16
    # the clean losses of the later positions are the same predictions
    assert whole.cross_entropy_after_first.clean == pytest.approx(apart.cross_entropy.clean, rel=1e-6)
    assert whole.cross_entropy_after_first.predictions == apart.cross_entropy.predictions
    assert sum(whole.cross_entropy.position_bins.predictions) == whole.cross_entropy.predictions
    assert apart.cross_entropy.position_bins.predictions == whole.cross_entropy.position_bins.predictions[1:]


def test_context_length_counts_kept_tokens_only():
    keep = np.array([[False, False, True, True, True, True], [True, True, True, True, False, False]])
    np.testing.assert_array_equal(downstream.context_length(keep), [[0, 0, 1, 2, 3], [1, 2, 3, 4, 4]])
