"""Aggregators: known answers, float64 references, and what must not change a score."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.probes import (
    AGGREGATORS,
    Attention,
    LastToken,
    Max,
    Mean,
    MeanExcess,
    MultiMax,
    RollingMax,
    SoftmaxMean,
    aggregate,
)


def softmax(q):
    e = np.exp(q - q.max())
    return e / e.sum()


def rolling(z, width):
    width = min(width, len(z))
    return max(z[start : start + width].mean() for start in range(len(z) - width + 1))


REFERENCES = {
    Mean(): lambda z: z[0].mean(),
    LastToken(): lambda z: z[0][-1],
    Max(): lambda z: z[0].max(),
    RollingMax(4): lambda z: rolling(z[0], 4),
    SoftmaxMean(0.7): lambda z: softmax(z[0] / 0.7) @ z[0],
    Attention(): lambda z: softmax(z[0]) @ z[1],
    MeanExcess(0.3): lambda z: np.maximum(z[0] - 0.3, 0).mean(),
    MultiMax(3): lambda z: z.max(axis=1).sum(),
}
"""Each aggregator on the readings `[reading, token]` of the tokens of one text that count."""
ALL = pytest.mark.parametrize("aggregator", REFERENCES, ids=lambda a: type(a).__name__)


def drawn(readings: int, seed: int = 0) -> tuple[Any, Any]:
    """Readings [text, reading, pos], and masks with gaps; the last texts have 1 and 2 tokens."""
    rng = np.random.default_rng(seed)
    read = rng.random((7, 12)) < 0.6
    read[:, 5] = True
    read[-1] = read[-2] = False
    read[-1, 4] = read[-2, 3] = read[-2, 9] = True
    return rng.normal(size=(7, readings, 12)).astype(np.float32), read


def test_every_aggregator_has_a_reference():
    assert {type(aggregator) for aggregator in REFERENCES} == set(AGGREGATORS)


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [
        (Mean(), 0.5),
        (Max(), 4.0),
        (LastToken(), 0.0),
        (SoftmaxMean(1.0), 4 * np.exp(4) / (np.exp(4) + 4 + np.exp(-1)) - np.exp(-1) / (np.exp(4) + 4 + np.exp(-1))),
        (SoftmaxMean(5.0), (4 * np.exp(0.8) - np.exp(-0.2)) / (np.exp(0.8) + 4 + np.exp(-0.2))),
        (RollingMax(3), 4 / 3),
        (MeanExcess(1.0), 0.5),
        (MeanExcess(-1.0), 1.5),
    ],
    ids=str,
)
def test_known_answers(aggregator, expected):
    z = jnp.asarray([0, 0, 4, 0, -1, 0], jnp.float32)
    np.testing.assert_allclose(aggregate(aggregator, z), expected, rtol=1e-6, atol=1e-7)


@ALL
def test_it_is_the_reference_over_the_tokens_that_count(aggregator):
    z, read = drawn(aggregator.readings)
    expected = [REFERENCES[aggregator](of[:, at].astype(np.float64)) for of, at in zip(z, read, strict=True)]
    np.testing.assert_allclose(jax.jit(aggregator)(z, read), expected, rtol=1e-5, atol=1e-6)


@ALL
def test_tokens_that_do_not_count_change_nothing_wherever_they_are(aggregator):
    z, read = drawn(aggregator.readings)
    at = np.sort(np.random.default_rng(1).integers(0, 13, 9))
    more_z, more_read = jnp.asarray(np.insert(z, at, 1e4, axis=-1)), jnp.asarray(np.insert(read, at, False, axis=-1))
    np.testing.assert_allclose(aggregator(more_z, more_read), aggregator(z, read), rtol=1e-5, atol=1e-6)


@ALL
def test_the_gradient_is_finite_and_only_at_tokens_that_count(aggregator):
    """A constant that is added to all readings is added to the score of each head: the gradient sums to the heads."""
    z, read = drawn(aggregator.readings)
    read[0] = False  # no token counts
    for values in (z, np.zeros_like(z), 1e4 * z):
        gradient = np.asarray(jax.grad(lambda z: aggregator(z, jnp.asarray(read)).sum())(jnp.asarray(values)))
        assert np.isfinite(gradient).all()
        assert not gradient[np.broadcast_to(~read[:, None, :], gradient.shape)].any()
        if not aggregator.needs_bias:
            heads = aggregator.readings if isinstance(aggregator, MultiMax) else 1
            np.testing.assert_allclose(gradient[1:].sum(axis=(1, 2)), heads, rtol=2e-3)


def test_between_the_mean_and_the_maximum():
    z, read = drawn(1)
    of = lambda aggregator: np.asarray(aggregator(z, read))
    np.testing.assert_allclose(of(SoftmaxMean(1e-3)), of(Max()), atol=1e-3)
    np.testing.assert_allclose(of(SoftmaxMean(1e4)), of(Mean()), atol=1e-3)
    np.testing.assert_allclose(of(RollingMax(1)), of(Max()), rtol=1e-6)
    np.testing.assert_allclose(of(RollingMax(12)), of(Mean()), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of(RollingMax(500)), of(Mean()), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of(MultiMax(1)), of(Max()))
    np.testing.assert_allclose(of(MeanExcess(-50.0)) - 50, of(Mean()), atol=1e-4)
    still = np.stack([np.full_like(z[:, 0], 3.0), z[:, 0]], axis=1)
    np.testing.assert_allclose(Attention()(still, read), of(Mean()), rtol=1e-5, atol=1e-6)


def test_scores_of_tokens_that_do_not_count_may_be_nan_and_an_empty_text_has_no_score():
    z, read = drawn(1)
    read[2] = False
    spoilt = np.where(read, z[:, 0], np.nan)
    for aggregator in REFERENCES:
        if aggregator.readings == 1:
            found = np.asarray(aggregate(aggregator, spoilt, read))
            assert np.isnan(found).tolist() == [row == 2 for row in range(len(z))]
            np.testing.assert_allclose(found[:2], np.asarray(aggregator(z, read))[:2], rtol=1e-6)


def test_what_is_refused():
    for build in (lambda: RollingMax(0), lambda: SoftmaxMean(0.0), lambda: MultiMax(0)):
        with pytest.raises(UserError, match="must be"):
            build()
    with pytest.raises(UserError, match="takes 2 readings for each token"):
        aggregate(Attention(), jnp.zeros(4))


def test_the_maximum_grows_with_the_length_and_the_mean_does_not():
    """The mean of the maximum of n normal numbers, from its integral."""
    z = np.random.default_rng(0).normal(size=(4000, 256)).astype(np.float32)
    grid = np.linspace(-8, 8, 20001)
    density = np.exp(-grid * grid / 2) / np.sqrt(2 * np.pi)
    below = np.cumsum(density) * (grid[1] - grid[0])
    for n in (4, 32, 256):
        expected = np.trapezoid(grid * n * below ** (n - 1) * density, grid)
        np.testing.assert_allclose(aggregate(Max(), z[:, :n]).mean(), expected, atol=0.03)
        np.testing.assert_allclose(aggregate(Mean(), z[:, :n]).mean(), 0, atol=0.03)
