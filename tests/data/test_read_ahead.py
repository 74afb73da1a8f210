"""Rows that threads read ahead, and rows shuffled within windows: the same rows, each once an epoch, and resumable."""

from __future__ import annotations

import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_interp.core.errors import UserError
from jax_interp.data.activation_import import import_activations
from jax_interp.data.activation_shards import StoreLayout
from jax_interp.data.activation_store import BLOCK
from jax_interp.data.read_ahead import ReadAhead, read_ahead
from jax_interp.data.shuffling import shuffled_in_windows
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.training.config import Adam
from jax_interp.dictionaries.training.from_store import train_from_store
from jax_interp.training import Log, SaveTo
from jax_interp.training.sharding import make_mesh


def test_batches_come_in_order_and_begin_where_a_run_resumes():
    def batch_at(number):
        time.sleep(0.01 * (number % 3 == 0))  # later batches are ready first
        return np.full(4, number)

    for threads in (0, 1, 4):
        batches = read_ahead(batch_at, ReadAhead(threads, 6), stop=40)(7)
        assert [int(batch[0]) for batch in batches] == list(range(7, 40))


def test_an_error_is_raised_where_its_batch_is_asked_for():
    def batch_at(number):
        if number == 5:
            raise UserError("shard-00001.npy was changed")
        return number

    batches = read_ahead(batch_at, ReadAhead(3, 6), stop=40)(0)
    assert [next(batches) for _ in range(5)] == list(range(5))
    with pytest.raises(UserError, match=r"shard-00001\.npy was changed"):
        next(batches)


def test_no_more_is_made_ahead_than_is_asked_for_and_no_thread_stays():
    made, others = [], set(threading.enumerate())

    def batch_at(number):
        made.append(number)
        return number

    batches = read_ahead(batch_at, ReadAhead(2, 3))(0)
    for _ in range(4):
        next(batches)
    time.sleep(0.3)
    assert 4 < len(made) <= 4 + 3 + 2
    del batches
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - others
    with pytest.raises(UserError, match="at least 0 threads and 1 batch"):
        ReadAhead(threads=-1)


@given(n=st.integers(1, 400), window=st.integers(1, 500), block=st.integers(1, 60), seed=st.integers(-5, 5))
def test_windows_visit_every_row_once_and_stay_within_their_blocks(n, window, block, seed):
    order = shuffled_in_windows(np.arange(n), n, window=window, block=block, seed=seed, epoch=3)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    block = min(block, window, n)
    blocks, per_window = n // block, window // block
    of_window = [set(part // block) for part in np.split(order, np.arange(per_window * block, n, per_window * block))]
    whole = of_window[: max(1, blocks // per_window) - 1]
    assert all(len(found) == per_window for found in whole), "a window has the rows of its blocks only"
    some = np.random.default_rng(0).permutation(n)[:20]
    np.testing.assert_array_equal(
        shuffled_in_windows(some, n, window=window, block=block, seed=seed, epoch=3), order[some]
    )


def test_rows_of_a_window_are_in_random_order():
    n, window, block = 4096, 1024, 64
    orders = [
        shuffled_in_windows(np.arange(n), n, window=window, block=block, seed=s, epoch=e)
        for s, e in ((0, 0), (0, 1), (1, 0))
    ]
    for order in orders:
        assert abs(np.corrcoef(np.arange(window), order[:window])[0, 1]) < 0.15
        assert (np.abs(np.diff(order)) == 1).mean() < 0.02
        assert len(set(order[:window] // block)) == 16
        assert np.ptp(order[:window]) > n // 2, "the blocks are from everywhere"
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rows = np.random.default_rng(0).standard_normal((3 * BLOCK + 100, 8)).astype(np.float32)
    rows[:, 7] = np.arange(len(rows)) / len(rows)
    layout = StoreLayout(5000, "float32")
    return import_activations(tmp_path_factory.mktemp("store") / "acts", [rows], "blocks.0.resid_post", layout=layout)


def test_a_store_gives_each_row_once_an_epoch_in_any_order(store):
    every = np.sort(store.take(np.arange(store.rows))[:, 7])
    for window in (None, BLOCK, 2 * BLOCK, 10 * BLOCK):
        batch_at = store.batches(store.rows // 4, 1, window)
        epoch = np.concatenate([batch_at(step) for step in range(4)])
        np.testing.assert_array_equal(np.sort(epoch[:, 7]), every)
    with pytest.raises(UserError, match="window=0 must be at least 1"):
        store.batches(10, 0, 0)


@pytest.mark.parametrize("place", [None, pytest.param({"data": 4}, marks=pytest.mark.slow)], ids=str)
def test_read_ahead_changes_no_bit_also_after_a_resume(store, place, tmp_path):
    config = variants.topk("blocks.0.resid_post", k=4, n_features=16, steps=12, optimizer=Adam(warmup=2))
    mesh = None if place is None else make_mesh(**place)

    def run(directory, threads, stop_at=None):
        def die(record):
            if record["step"] == stop_at:
                raise KeyboardInterrupt

        return train_from_store(
            config,
            store,
            batch=64,
            window=2 * BLOCK,
            ahead=ReadAhead(threads),
            run=SaveTo(tmp_path / directory, every=4),
            place=mesh,
            log=Log(every=1, on_record=die, quiet=True),
        )

    with pytest.raises(KeyboardInterrupt):
        run("stopped", 3, stop_at=7)
    resumed, whole = run("stopped", 2), run("whole", 0)
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "stopped/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    if place is None:
        with pytest.raises(UserError, match="window"):
            train_from_store(config, store, batch=64, run=tmp_path / "whole", log=Log(quiet=True))
