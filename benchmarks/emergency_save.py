"""How long a checkpoint takes: the time that a run needs after SIGTERM, beside what the disk can do.

    python benchmarks/emergency_save.py --gigabytes 1 3 10 --where runs

The state is what training has: float32 parameters and two moments, random numbers that do not compress. For each size
and each round, in turn:

    dd             zeros by `dd conv=fsync` of the same size
    bytes          the same arrays, written to one file and flushed
    fingerprints   of all leaves, as a save computes them
    compressed     the arrays by orbax with its default, zstd
    save           `training.checkpoint.save`: arrays, fingerprints, flush, rename

The medians are printed, with processor seconds and the memory that the save adds. `--rounds 1` shows the effect of a
single try, which is what a signal gets.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

LEAVES = 12


def make_state(gigabytes: float):
    import jax

    rows = max(round(gigabytes * 1e9 / 4 / LEAVES / 4096), 1)
    state = {f"leaf{i}": jax.random.normal(jax.random.key(i), (rows, 4096)) for i in range(LEAVES)}
    return jax.block_until_ready(state)


class Peak:
    """The highest resident memory of this process within a `with` block, in bytes above that at its start."""

    def __enter__(self) -> Peak:
        self._start, self.bytes, self._over = _resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, _resident() - self._start)

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def works(state: dict, where: Path, size: int) -> dict[str, Callable[[], object]]:
    """The things to time. Each is given an empty directory `where`."""
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from jax_interp.training import checkpoint
    from jax_interp.training.fingerprint import fingerprints

    def dd() -> None:
        command = ["dd", "if=/dev/zero", f"of={where / 'zeros'}", "bs=16M", f"count={size >> 24}", "conv=fsync"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    def plain() -> None:
        with open(where / "bytes", "wb") as file:
            for leaf in state.values():
                file.write(memoryview(np.asarray(leaf)).cast("B"))
            file.flush()
            os.fsync(file.fileno())

    return {
        "dd": dd,
        "bytes": plain,
        "fingerprints": lambda: fingerprints(state),
        "compressed": lambda: ocp.save(str(where / "arrays"), state),
        "save": lambda: checkpoint.save(where / "checkpoints", 1, state),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--where", type=Path, default=Path("runs"), help="a folder on the disk to measure")
    parser.add_argument("--only", nargs="+", default=None, help="names of what to time")
    options = parser.parse_args()
    place = options.where / "emergency_save"
    print(f"{'GB':>5} {'what':<13} {'seconds':>8} {'GB/s':>6} {'of dd':>6} {'cpu s':>7} {'added GB':>8}")
    for gigabytes in options.gigabytes:
        state = make_state(gigabytes)
        size = sum(leaf.nbytes for leaf in state.values())
        todo = {n: f for n, f in works(state, place, size).items() if options.only is None or n in options.only}
        rows: dict[str, list[tuple[float, float, int]]] = {name: [] for name in todo}
        if "fingerprints" in todo or "save" in todo:
            works(state, place, size)["fingerprints"]()  # compiles
        for _ in range(options.rounds):
            for name, work in todo.items():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
                os.sync()  # what an earlier piece left in memory is not part of this one
                with Peak() as peak:
                    began, cpu = time.perf_counter(), time.process_time()
                    work()
                    rows[name].append((time.perf_counter() - began, time.process_time() - cpu, peak.bytes))
        shutil.rmtree(place, ignore_errors=True)
        of_dd = statistics.median(row[0] for row in rows["dd"]) if "dd" in rows else float("nan")
        for name, values in rows.items():
            seconds, cpu, added = (statistics.median(column) for column in zip(*values))
            print(
                f"{size / 1e9:>5.1f} {name:<13} {seconds:>8.2f} {size / seconds / 1e9:>6.2f} {of_dd / seconds:>6.2f}"
                f" {cpu:>7.2f} {added / 1e9:>8.2f}",
                flush=True,
            )
        del state, todo


if __name__ == "__main__":
    main()
