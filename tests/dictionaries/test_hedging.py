"""The n-th decoder projection: by sorting, and smallest for the true decoder among mixed ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.evaluation.sparsity import nth_projection
from jax_interp.toys.synthetic import sparse_but_wrong


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoder:
    W_dec: jax.Array
    b_dec: jax.Array


def test_it_is_an_entry_of_the_sorted_projections():
    rng = np.random.default_rng(0)
    W, b, x = rng.standard_normal((7, 4)), rng.standard_normal(4), rng.standard_normal((30, 4))
    decoder = Decoder(*(jnp.asarray(a, jnp.float32) for a in (W, b)))
    order = np.sort(((x - b) @ W.T).reshape(-1))[::-1]
    for n in (0, 2, 1.5, 6):
        assert nth_projection(decoder, [jnp.asarray(x, jnp.float32)], n) == pytest.approx(
            order[round(n * 30)], rel=1e-4
        )
    halves = [jnp.asarray(part, jnp.float32) for part in np.split(x, 2)]
    both = np.mean([np.sort(((part - b) @ W.T).reshape(-1))[::-1][30] for part in np.split(x, 2)])
    assert nth_projection(decoder, iter(halves), 2) == pytest.approx(both, rel=1e-4)
    with pytest.raises(UserError, match="below the number of features, 7"):
        nth_projection(decoder, halves, 7)
    with pytest.raises(UserError, match="no rows"):
        nth_projection(decoder, [], 2)


def test_a_mixed_decoder_has_the_lower_error_at_too_small_an_l0():
    """Sparse but wrong: with one latent a row where two features are on, directions tilted towards the feature that
    they fire with explain more than the true directions do."""
    x, codes = drawn()
    true = np.linalg.lstsq(codes, x, rcond=None)[0]
    tilts = np.linspace(-0.4, 0.4, 17)
    explained = []
    for tilt in tilts:
        mixed = true + tilt * np.outer(np.arange(5) > 0, true[0])
        mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
        explained.append((np.maximum(x @ mixed.T, 0).max(1) ** 2).mean())
    best = tilts[np.argmax(explained)]
    assert best > 0.04
    assert max(explained) > 1.005 * explained[8]  # the true decoder is in the middle


def test_the_projections_rise_when_features_are_mixed():
    x, codes = drawn()
    true = np.linalg.lstsq(codes, x, rcond=None)[0]
    mixed = true + 0.4 * np.outer(np.arange(5) > 0, true[0])
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    rows = [jnp.asarray(x, jnp.float32)]
    at = lambda W: nth_projection(Decoder(jnp.asarray(W, jnp.float32), jnp.zeros(20)), rows, 2.3)
    assert abs(at(true)) < 1e-3  # beyond the true L0 of 2 an orthonormal decoder projects on nothing
    assert at(mixed) > 0.05


def drawn():
    make = lambda key: sparse_but_wrong(key).sample(jax.random.fold_in(key, 1), 4000)
    return [np.asarray(a, np.float64) for a in jax.jit(make)(jax.random.key(0))]
