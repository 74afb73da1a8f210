"""Activation stores: writing, reading shuffled rows, read-ahead, memory.

    python benchmarks/activation_store.py [--rows 1000000] [--d 64] [--step-ms 20]

It writes `--rows` rows of width `--d` in float16 (what a harvest does after the forward pass), and then takes turns,
repeat by repeat, between four ways to read batches of 2048 shuffled rows in float32: the store, the same rows read by
NumPy from one memory-mapped array (`raw`), a loop over files that are shuffled one by one (`files`, what plain training
scripts do; its order is worse), and the store with its order within windows. Then training steps of `--step-ms` take
turns with and without read-ahead: the share of time that the steps wait. 10⁹ rows are extrapolated.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from jax_interp.data.activation_import import import_activations
from jax_interp.data.activation_store import ActivationStore, open_activation_store
from jax_interp.data.read_ahead import ReadAhead, read_ahead

BATCH, REPEATS, BATCHES = 2048, 5, 60


def memory() -> float:
    """The highest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def blocks(rows: int, d: int):
    rng = np.random.default_rng(0)
    block = rng.standard_normal((65_536, d)).astype(np.float16)
    for start in range(0, rows, len(block)):
        yield block[: rows - start]


def file_loop(store: ActivationStore):
    """Batches of each file in turn, with the rows of a file in random order."""
    rng = np.random.default_rng(0)
    while True:
        for i in rng.permutation(len(store.shards)):
            rows = np.load(store.shards[i].path)
            order = rng.permutation(len(rows))
            for start in range(0, len(rows) - BATCH + 1, BATCH):
                yield rows[order[start : start + BATCH]].astype(np.float32)


def timed(make) -> float:
    """Rows per second of `BATCHES` calls."""
    start = time.perf_counter()
    for number in range(BATCHES):
        make(number)
    return BATCHES * BATCH / (time.perf_counter() - start)


def readers(store: ActivationStore) -> dict:
    raw, files = np.concatenate([shard.rows for shard in store.shards]), file_loop(store)
    path = store.directory / "raw.npy"
    np.save(path, raw)
    mapped, rng = np.load(path, mmap_mode="r"), np.random.default_rng(1)
    return {
        "store": store.batches(BATCH),
        "window": store.batches(BATCH, 0, max(store.rows // 8, BATCH)),
        "raw": lambda _: mapped[np.sort(rng.integers(0, store.rows, BATCH))].astype(np.float32),
        "files": lambda _: next(files),
    }


def waiting(store: ActivationStore, threads: int, seconds: float) -> float:
    """The share of the time that steps of `seconds` wait for their batches. A step leaves the CPU free, as an
    accelerator does."""
    batches, waited, begin = read_ahead(store.batches(BATCH), ReadAhead(threads))(0), 0.0, time.perf_counter()
    for _ in range(BATCHES):
        start = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - start
        time.sleep(seconds)
    return waited / (time.perf_counter() - begin)


def measure(rows: int, d: int, step_ms: float) -> dict:
    """All figures."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        directory, before, start = Path(folder) / "store", memory(), time.perf_counter()
        import_activations(directory, blocks(rows, d), "blocks.0.resid_post")
        writing, grown = time.perf_counter() - start, memory() - before
        start = time.perf_counter()
        store = open_activation_store(directory)
        opening = time.perf_counter() - start
        start = time.perf_counter()
        for shard in store.shards:
            shard.rows  # noqa: B018  compares the digest
        verifying = time.perf_counter() - start
        ways = readers(store)
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(REPEATS):
            for name, make in ways.items():
                speeds[name].append(timed(make))
        waits = {threads: [] for threads in (0, 1, 2)}
        for _ in range(3):
            for threads, found in waits.items():
                found.append(waiting(store, threads, step_ms / 1e3))
        size = (directory / "store.json").stat().st_size
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    return {
        "rows": rows,
        "d": d,
        "write_rows_per_s": rows / writing,
        "write_MB_per_s": rows * d * 2 / writing / 1e6,
        "write_memory_MB": grown,
        "open_s": opening,
        "verify_MB_per_s": rows * d * 2 / verifying / 1e6,
        "read_rows_per_s": middle,
        "read_against_raw": {name: found / middle["raw"] for name, found in middle.items()},
        "waiting_by_threads": {str(threads): statistics.median(found) for threads, found in waits.items()},
        "manifest_bytes_per_file": size / len(store.shards),
        "hours_to_write_1e9_rows": writing * 1e9 / rows / 3600,
        "manifest_MB_of_1e9_rows": size / len(store.shards) * (1e9 / 131_072) / 1e6,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=20.0)
    args = parser.parse_args()
    print(json.dumps(measure(args.rows, args.d, args.step_ms), indent=2))
