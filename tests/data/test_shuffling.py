"""Permutations computed place by place: bijections, unrelated to each other, uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_interp.data.shuffling import shuffled


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 1000))
def test_shuffled_is_a_permutation(n, seed, epoch):
    order = shuffled(np.arange(n), n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    places = np.asarray([0, n // 2, n - 1])
    np.testing.assert_array_equal(shuffled(places, n, seed=seed, epoch=epoch), order[places])


@pytest.mark.slow
def test_shuffled_looks_random():
    """Orders of different epochs and seeds are unrelated, and each place gets each value equally often."""
    n = 1000
    orders = np.stack([shuffled(np.arange(n), n, seed=s, epoch=e) for s in (0, 1) for e in range(50)])
    correlation = np.corrcoef(np.concatenate([np.arange(n)[None], orders]))
    assert abs(correlation - np.eye(len(correlation))).max() < 6 / np.sqrt(n)
    small = np.stack([shuffled(np.arange(7), 7, seed=s) for s in range(7000)])
    counts = np.stack([np.bincount(small[:, i], minlength=7) for i in range(7)])
    assert abs(counts / 1000 - 1).max() < 6 / np.sqrt(1000)
