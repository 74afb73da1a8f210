"""Which features never fire, within which window, and who is to blame for L0: codes written by hand."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries.evaluation.reconstruction import add_batch_sums, batch_sums
from jax_interp.dictionaries.evaluation.sparsity import Density

of_batch = jax.jit(partial(batch_sums, SimpleNamespace(encode=lambda x: x, decode=lambda z: z)))


def density(codes, keep, batches):
    total = None
    for rows, kept in zip(np.array_split(codes, batches), np.array_split(keep, batches)):
        rows = jnp.asarray(rows, jnp.float32)
        total = add_batch_sums(total, of_batch(rows, jnp.asarray(kept), jnp.zeros(codes.shape[1])))
    return Density.from_sums(total)


def test_dead_depends_on_the_window():
    codes = np.zeros((3000, 6))
    keep = np.ones(3000, bool)
    keep[1::3] = False  # 2000 kept: row 3i is number 2i, row 3i + 2 number 2i + 1
    codes[0, 0] = 1  # at once
    codes[765, 1] = 1  # number 510: within 512
    codes[768, 2] = 1  # number 512: not within 512, within 1024
    codes[2999, 3] = 1  # the last, number 1999
    codes[1, 4] = 1  # only where not kept
    for batches in (1, 4):
        got = density(codes, keep, batches)
        assert got.window == 2000
        assert got.windows == [512, 1024, 2000]
        assert got.dead_by_window == [4, 3, 2]
        assert got.dead == 2


def test_shares_of_l0():
    codes = np.zeros((1000, 100))
    codes[:, 0] = 1  # density 1
    codes[:200, 1] = 1  # .2
    codes[:50, 2] = 1  # .05
    codes[:5, 3:13] = 1  # .005 each, ten of them
    got = density(codes, np.ones(1000, bool), 4)
    fires = 1000 + 200 + 50 + 50
    assert (got.above_1_percent, got.above_10_percent) == (3, 2)
    assert got.l0_share_above_1_percent == pytest.approx(1250 / fires)
    assert got.l0_share_above_10_percent == pytest.approx(1200 / fires)
    assert got.l0_share_of_top_1_percent == got.l0_share_of_top_per_mille == pytest.approx(1000 / fires)
    assert got.l0_share_of_top_10_percent == pytest.approx((1250 + 7 * 5) / fires)


def test_nothing_ever_fires():
    got = density(np.zeros((30, 4)), np.ones(30, bool), 2)
    assert (got.dead, got.dead_by_window, got.windows) == (4, [4], [30])
    assert np.isnan(got.l0_share_above_1_percent)
    assert sum(got.counts) == 0
