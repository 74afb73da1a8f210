"""A run over two processes: one is asked to stop, both save the same step, and the run goes on bit for bit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jax_interp.training import checkpoint
from jax_interp.training.metrics import read_log

SCRIPT = Path(__file__).with_name("process_run.py")
STEPS = 60


def start(directory, *variant):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), f"127.0.0.1:{port}", "2", str(index), str(directory), str(STEPS), *variant],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def end(processes):
    outcomes = [(p.communicate(timeout=300)[1], p.returncode) for p in processes]
    return [code for _, code in outcomes], "\n".join(errors for errors, _ in outcomes)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    codes, errors = end(start(tmp_path / "whole"))
    assert codes == [0, 0], errors
    processes = start(tmp_path / "stopped")
    deadline = time.monotonic() + 200
    while len(read_log(tmp_path / "stopped" / "metrics.jsonl")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = end(processes)
    assert codes == [143, 143], errors
    reached = checkpoint.latest(tmp_path / "stopped" / "checkpoints")
    assert reached is not None
    assert 10 <= reached < 50
    codes, errors = end(start(tmp_path / "stopped"))
    assert codes == [0, 0], errors
    whole, stopped = (tmp_path / name / "checkpoints" / f"{STEPS:08d}" for name in ("whole", "stopped"))
    assert checkpoint.describe(whole) == checkpoint.describe(stopped)  # shapes, dtypes, fingerprints
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "stopped/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_return_to_the_same_checkpoint_after_a_nan(tmp_path):
    """Batch 12 is NaN before the first checkpoint: both return to the initial state, and skip batches 0 to 12."""
    codes, errors = end(start(tmp_path / "nan", "nan"))
    assert codes == [0, 0], errors
    assert errors.count("batches 0 to 12 are skipped") == 1  # the first process says it
    codes, errors = end(start(tmp_path / "later", "later"))
    assert codes == [0, 0], errors
    skipped, later = (tmp_path / name / "checkpoints" / f"{STEPS:08d}" for name in ("nan", "later"))
    assert checkpoint.describe(skipped) == checkpoint.describe(later)
    assert (tmp_path / "nan/metrics.jsonl").read_bytes() == (tmp_path / "later/metrics.jsonl").read_bytes()
