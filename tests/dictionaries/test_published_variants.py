"""The figures that other libraries call by our names: equal to their formulas in float64, and different from ours."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries.evaluation.published import Published
from jax_interp.dictionaries.evaluation.reconstruction import (
    Reconstruction,
    add_batch_sums,
    batch_sums,
    fvu_by_value,
    subtract_sums,
)

RNG = np.random.default_rng(0)


def measure(x, x_hat, batches=2, keep=None):
    """Totals of a dictionary that reconstructs the rows `x` as `x_hat`."""
    keep = np.ones(len(x), bool) if keep is None else keep
    total, shift = None, jnp.asarray(x[0], jnp.float32)
    for a, b, kept in zip(*(np.array_split(c, batches) for c in (x, x_hat, keep))):
        a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
        total = add_batch_sums(total, lookup(a, b, jnp.asarray(kept), shift))
    return total


@jax.jit
def lookup(x, x_hat, keep, shift):
    """The sums of the dictionary whose code, whatever it is given, is the reconstruction wanted."""
    return batch_sums(SimpleNamespace(encode=lambda _: x_hat, decode=lambda z: z), x, keep, shift)


def test_every_variant_equals_its_formula_and_none_equals_ours():
    mean = np.linspace(-1, 1, 16)
    x = RNG.standard_normal((800, 16)) + mean
    x_hat = 0.6 * x + 0.3 * RNG.standard_normal(x.shape) + 0.2
    keep = RNG.random(800) < 0.9
    total = measure(x, x_hat, 2, keep)
    ours, theirs = Reconstruction.from_sums(total), Published.from_sums(total)
    batches = [(a[k], b[k]) for a, b, k in zip(np.split(x, 2), np.split(x_hat, 2), np.split(keep, 2))]
    x, x_hat = x[keep], x_hat[keep]
    error = x - x_hat
    sse, square, cross = (error**2).sum(1), (x**2).sum(1), (x * x_hat).sum(1)
    per_token = [((a - b) ** 2).sum(1) / ((a - a.mean(0)) ** 2).sum(1) for a, b in batches]
    wanted = {
        "ev_second_moment": 1 - sse.mean() / (square.mean() - (x**2).mean(0).mean() ** 2),
        "fve_centred_residual": 1 - error.var(0).sum() / x.var(0).sum(),
        "ev_per_token": 1 - np.concatenate(per_token).mean(),
        "nmse_per_token": (sse / square).mean(),
        "l2_loss": np.sqrt(sse).mean(),
        "gamma_v1": np.sqrt((x_hat**2).sum(1).mean() / (square.mean() - sse.mean())),
        "gamma_regression": (cross / square).mean(),
    }
    for name, value in wanted.items():
        assert getattr(theirs, name) == pytest.approx(value, rel=1e-4), name
    ev = 1 - sse.sum() / ((x - x.mean(0)) ** 2).sum()
    assert 1 - ours.fvu == pytest.approx(ev, rel=1e-4)
    assert ours.gamma == pytest.approx((x_hat**2).sum() / cross.sum(), rel=1e-4)
    for name in ("ev_second_moment", "fve_centred_residual", "ev_per_token"):
        assert abs(getattr(theirs, name) - ev) > 0.01, name
    assert abs(theirs.nmse_per_token - ours.fvu) > 0.01
    for name in ("gamma_v1", "gamma_regression"):
        assert abs(getattr(theirs, name) - ours.gamma) > 0.01, name


def test_gamma_for_half_of_x():
    """x̂ = x/2: γ = 1/2, its inverse the best multiplier; version 1 of the paper gives 1/√3."""
    x = RNG.standard_normal((500, 4))
    total = measure(x, x / 2)
    assert Reconstruction.from_sums(total).gamma == pytest.approx(0.5, rel=1e-5)
    assert Published.from_sums(total).gamma_v1 == pytest.approx(3**-0.5, rel=1e-5)
    assert Published.from_sums(total).gamma_regression == pytest.approx(0.5, rel=1e-5)


def test_a_constant_error_is_invisible_to_the_centred_residual():
    x = RNG.standard_normal((500, 4))
    total = measure(x, x + 1.0)
    assert Published.from_sums(total).fve_centred_residual == pytest.approx(1, abs=1e-6)
    assert Reconstruction.from_sums(total).fvu == pytest.approx(4 / x.var(0).sum(), rel=1e-4)


def test_the_second_moment_for_the_mean_exceeds_one_and_misses_on_centred_data():
    offset = RNG.standard_normal((500, 4)) + 6
    assert Published.from_sums(measure(offset, offset + RNG.standard_normal(offset.shape))).ev_second_moment > 1
    centred = RNG.standard_normal((500, 4))
    total = measure(centred, centred + 0.5 * RNG.standard_normal(centred.shape))
    # E‖x‖² = 4 and the squared "mean" 1: 1 - 1/3 where the truth is 1 - 1/4
    assert Published.from_sums(total).ev_second_moment == pytest.approx(2 / 3, abs=0.04)
    assert 1 - Reconstruction.from_sums(total).fvu == pytest.approx(3 / 4, abs=0.04)


def test_figures_without_some_rows():
    x = RNG.standard_normal((300, 6)) * 0.1
    x[::10] += 50  # long activations at the "first position"
    x_hat = x + 0.05 * RNG.standard_normal(x.shape)
    x_hat[::10] = x[::10] * 0.99
    total, first = measure(x, x_hat), measure(x[::10], x_hat[::10], 1)
    np.testing.assert_allclose(first["centred"], (x[::10] - x[0]).sum(0), atol=1e-3)
    later = np.arange(300) % 10 > 0
    got = Reconstruction.from_sums(subtract_sums(total, first))
    want = Reconstruction.from_sums(measure(x[later], x_hat[later]))
    assert got.tokens == want.tokens == 270
    assert got.sse == pytest.approx(want.sse, rel=1e-4)
    assert got.cosine == pytest.approx(want.cosine, rel=1e-4)
    assert got.l2_ratio == pytest.approx(want.l2_ratio, rel=1e-4)
    assert Reconstruction.from_sums(total).fvu < 0.01 < 0.2 < want.fvu  # those rows hide all the rest


def test_a_row_of_length_zero_has_no_direction():
    """Mean norm ratio and cosine are over the other rows; half of the rows here are 0, as where no feature is on."""
    x = np.where(np.arange(500)[:, None] % 2, RNG.standard_normal((500, 4)), 0)
    figures = Reconstruction.from_sums(measure(x, x / 2))
    np.testing.assert_allclose([figures.l2_ratio, figures.cosine], [0.5, 1], rtol=1e-5)


def test_a_transcoder_with_a_skip_is_measured_on_what_it_should_write():
    """y = (2x, a feature of its own): the skip writes the first part, the latent the second's first column, and each
    value has its own FVU."""
    x = RNG.standard_normal((400, 3))
    y = np.concatenate([2 * x, 0.1 * np.abs(x)], axis=1)
    W_skip = np.concatenate([2 * np.eye(3), np.zeros((3, 3))], axis=1)
    transcoder = SimpleNamespace(
        encode=lambda x: jnp.abs(x[:, :1]),
        decode=lambda z: z @ jnp.asarray([[0, 0, 0, 0.1, 0, 0]]) + 0.05,
        W_skip=jnp.asarray(W_skip, jnp.float32),
    )
    x32, y32 = (jnp.asarray(a, jnp.float32) for a in (x, y))
    of_batch = jax.jit(partial(batch_sums, transcoder))
    total = add_batch_sums(None, of_batch(x32, jnp.ones(400, bool), y32.mean(0), y32))
    error = y - x @ W_skip - 0.05
    error[:, 3] -= 0.1 * np.abs(x[:, 0])
    variance = ((y - y.mean(0)) ** 2).sum(0)
    assert Reconstruction.from_sums(total).fvu == pytest.approx((error**2).sum() / variance.sum(), rel=1e-3)
    by_value = fvu_by_value(total, {"a": 3, "b": 3})
    assert by_value["a"] == pytest.approx((error[:, :3] ** 2).sum() / variance[:3].sum(), rel=1e-2)
    assert by_value["b"] == pytest.approx((error[:, 3:] ** 2).sum() / variance[3:].sum(), rel=1e-3)
    assert by_value["b"] > 0.5 > 0.05 > Reconstruction.from_sums(total).fvu
