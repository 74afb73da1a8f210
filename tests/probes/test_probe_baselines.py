"""Baselines: the optimum of the text classifier, shuffles that stay inside, and networks that were not trained."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, peaky
from toy import toy

from jax_interp import UserError
from jax_interp.core.leaves import flatten
from jax_interp.probes import LabelledTokens
from jax_interp.probes.baselines import bag_of_words, length_alone, lengths, reset, shuffled_within
from jax_interp.surgery import iter_blocks, replan


def texts(n=120, seed=0):
    """Texts of 3 to 9 tokens, with BOS. Token 5 is more frequent in positive texts, and these are longer."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.int32)
    length = rng.integers(3, 8, n) + 2 * labels
    mask = np.arange(10)[None] < length[:, None]
    tokens = rng.integers(1, 12, (n, 10)).astype(np.int32)
    tokens = np.where((rng.random(tokens.shape) < 0.4) & (labels[:, None] == 1), 5, tokens)
    tokens[:, 0], readable = 0, mask.copy()
    readable[:, 0] = False
    return LabelledTokens("texts", np.where(mask, tokens, 777).astype(np.int32), mask, readable, labels, ("no", "yes"))


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_a_bag_of_words_is_the_optimum_of_its_objective(C):
    """The gradient of C Σ log(1 + exp(-s (x·w + b))) + ½‖w‖² is 0, on counts made by hand."""
    data, train = texts(), np.arange(120) % 4 > 0
    rows = list(zip(data.tokens, data.readable))
    counts = np.array([[np.sum(row[keep] == token) for token in range(13)] for row, keep in rows])
    scores = bag_of_words(data, train, C=C)[0]
    augmented = np.column_stack([counts, np.ones(120)])
    params = np.linalg.lstsq(augmented, scores, rcond=None)[0]
    np.testing.assert_allclose(augmented @ params, scores, atol=1e-8)  # linear in the counts: no padding, no BOS
    y = data.labels[train]
    slope = C * (1 / (1 + np.exp(-scores[train])) - y)
    assert abs(slope.sum()) < 1e-3 * C
    # w = -Xᵀ slope, so the scores of all texts follow from the slopes
    weight = -counts[train].T @ slope
    np.testing.assert_allclose(counts @ weight + (scores - counts @ weight).mean(), scores, atol=2e-3)


def test_each_split_has_its_own_fit_and_does_not_see_test_labels():
    data = texts()
    train = np.stack([np.arange(120) % 3 != part for part in range(3)])
    whole = bag_of_words(data, train)
    np.testing.assert_allclose(whole[1], bag_of_words(data, train[1])[0], atol=1e-9)
    other = dataclasses.replace(data, labels=np.where(train[1], data.labels, 1 - data.labels))
    np.testing.assert_array_equal(bag_of_words(other, train[1])[0], whole[1])


def test_length_alone_follows_length():
    data = texts()
    scores = length_alone(data, np.ones(120, bool))[0]
    np.testing.assert_array_equal(lengths(data), data.mask.sum(axis=1) - 1)
    slope = np.polyfit(lengths(data), scores, 1)
    assert slope[0] > 0
    np.testing.assert_allclose(np.polyval(slope, lengths(data)), scores, atol=1e-9)


def test_texts_of_equal_length_have_no_length_score():
    data = texts()
    every = np.ones_like(data.mask)
    same = LabelledTokens("same", data.tokens, every, every, data.labels, data.classes)
    assert np.ptp(length_alone(same, np.ones(120, bool))) == 0


def test_shuffled_labels_stay_in_the_part():
    labels, part = np.arange(50), np.arange(50) % 2 == 0
    found = shuffled_within(labels, part, 3)
    np.testing.assert_array_equal(found[~part], labels[~part])
    np.testing.assert_array_equal(np.sort(found[part]), labels[part])
    assert (found != labels).sum() > 15
    assert (found != shuffled_within(labels, part, 4)).any()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_reset_network_keeps_moments_and_nothing_else(name):
    model = peaky(CONFIGS[name])
    other = reset(model, jax.random.key(0))
    for (address, old), new in zip(flatten(model).items(), flatten(other).values(), strict=True):
        assert old.shape == new.shape
        assert old.dtype == new.dtype
        a, b = np.asarray(old, np.float64).ravel(), np.asarray(new, np.float64).ravel()
        assert abs(a.mean() - b.mean()) < 5 * a.std() / a.size**0.5 + 1e-6, address
        if a.size > 500:
            assert b.std() == pytest.approx(a.std(), rel=5 / a.size**0.5)
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / a.size**0.5, address
    tokens = jnp.asarray([[3, 5, 2]], jnp.int32)
    assert np.isfinite(np.asarray(other(tokens))).all()
    assert (np.asarray(other(tokens)) != np.asarray(model(tokens))).any()
    np.testing.assert_array_equal(reset(model, jax.random.key(0))(tokens), other(tokens))


def test_each_layer_keeps_its_own_moments():
    """A model with layers of very different scales, with blocks by themselves and stacked."""
    model = toy(layers=3, d=32)
    blocks = [dataclasses.replace(block, W=block.W * 10.0**i) for i, block in enumerate(model.blocks)]
    model = dataclasses.replace(model, blocks=blocks)
    layouts: list[Any] = [model, replan(cast(Any, model))]
    for layout in layouts:
        for (_, old), (_, new) in zip(iter_blocks(layout), iter_blocks(reset(layout, jax.random.key(1)))):
            (W,), (drawn,) = jax.tree.leaves(old), jax.tree.leaves(new)
            assert float(drawn.std()) == pytest.approx(float(W.std()), rel=0.2)


def test_what_is_kept_and_what_is_refused():
    model = toy()
    other = reset(model, jax.random.key(0), keep=lambda address: address == "E")
    np.testing.assert_array_equal(other.E, model.E)
    assert (np.asarray(other.U) != np.asarray(model.U)).all()
    with pytest.raises(UserError, match="not finite"):
        reset(dataclasses.replace(model, U=model.U * jnp.inf), jax.random.key(0))
    half = dataclasses.replace(model, U=model.U.astype(jnp.bfloat16))
    assert reset(half, jax.random.key(0)).U.dtype == jnp.bfloat16
    with pytest.raises(UserError, match="one class only"):
        bag_of_words(texts(), np.arange(120) < 1)
    with pytest.raises(UserError, match="must be positive"):
        bag_of_words(texts(), np.ones(120, bool), C=0.0)
