"""A cross-layer dictionary evaluated like any other: its figures from the written-out sums in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries.activations import ReLU
from jax_interp.dictionaries.evaluation.evaluate import evaluate_rows
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.forms.side_by_side import SideBySide


def test_figures_of_a_cross_layer_transcoder_with_skips():
    rng = np.random.default_rng(0)
    arrays = lambda *shape: rng.standard_normal(shape)
    W_enc, b_enc, b_dec = arrays(2, 3, 5), arrays(2, 5), arrays(2, 4)
    W_dec, W_skip = [arrays(5, 2, 4), arrays(5, 1, 4)], arrays(2, 3, 4)
    f32 = lambda a: jnp.asarray(a, jnp.float32)
    sources = [Source(*map(f32, (W_enc[i], b_enc[i], W_dec[i])), ReLU(), f32(W_skip[i])) for i in range(2)]
    clt = SideBySide(CrossLayer(tuple(sources), f32(b_dec)))
    x, y = arrays(60, 6), arrays(60, 8)
    got = evaluate_rows(clt, [f32(x)], [f32(y)]).reconstruction
    first, second = (np.maximum(x[:, 3 * i : 3 * i + 3] @ W_enc[i] + b_enc[i], 0) for i in range(2))
    low = first @ W_dec[0][:, 0] + x[:, :3] @ W_skip[0] + b_dec[0]
    high = first @ W_dec[0][:, 1] + second @ W_dec[1][:, 0] + x[:, 3:] @ W_skip[1] + b_dec[1]
    error = y - np.concatenate([low, high], axis=1)
    assert got.fvu == pytest.approx((error**2).sum() / ((y - y.mean(0)) ** 2).sum(), rel=1e-4)
    assert got.l0 == pytest.approx(((first > 0).sum(1) + (second > 0).sum(1)).mean())
    z = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(jax.jit(lambda d, x: d.encode(x))(clt, f32(x)), z, atol=1e-4)
    np.testing.assert_allclose(clt.decode(f32(z)), without_skips(low, high, x, W_skip), atol=1e-3)


def without_skips(low, high, x, W_skip):
    return np.concatenate([low - x[:, :3] @ W_skip[0], high - x[:, 3:] @ W_skip[1]], axis=1)
