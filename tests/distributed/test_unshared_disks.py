"""Hosts that do not share a disk: process 0 writes and reads for all, and decides from what it sees."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from started import Started, free_port

from jax_interp.training import checkpoint
from jax_interp.training.metrics import read_log

SCRIPT = str(Path(__file__).with_name("joined_run.py"))
STEPS = 30

pytestmark = pytest.mark.slow


def start(directory, processes, devices, **options):
    """`{process}` in the directory gives each process a disk of its own."""
    words = [f"{name}={value}" for name, value in options.items()]
    command = [SCRIPT, f"127.0.0.1:{free_port()}", str(processes), "{process}", str(directory), str(STEPS), *words]
    return Started(
        command, processes, Path(str(directory).replace("{process}", "s")).parent / "output", devices=devices
    )


def finished(run):
    assert set(run.end()) == {0}, run.all_errors()


def leaves(directory):
    return checkpoint.describe(checkpoint.path_of(directory / "checkpoints", STEPS))


def test_a_run_without_a_shared_disk_is_the_run_with_one(tmp_path):
    with start(tmp_path / "shared", 2, 1, every=10, seconds=0) as run:
        finished(run)
    own = tmp_path / "disk{process}" / "run"
    with start(own, 2, 1, every=10, log=1, seconds=0.1) as run:
        log = tmp_path / "disk0" / "run" / "metrics.jsonl"
        run.wait_for(lambda: len(read_log(log)) >= 3)
        run.signal(1, signal.SIGTERM)
        assert run.end() == [143, 143], run.all_errors()
    reached = checkpoint.latest(tmp_path / "disk0" / "run" / "checkpoints")
    assert reached is not None
    assert (checkpoint.path_of(tmp_path / "disk0" / "run" / "checkpoints", reached) / "whole").is_dir()
    assert not (tmp_path / "disk1").exists()
    shutil.copytree(tmp_path / "disk0", tmp_path / "alone")
    with start(own, 2, 1, every=10, log=1, seconds=0) as run:
        finished(run)
    with start(tmp_path / "alone" / "run", 1, 2, every=10, log=1, seconds=0) as run:
        finished(run)
    assert leaves(tmp_path / "shared") == leaves(tmp_path / "disk0" / "run") == leaves(tmp_path / "alone" / "run")
    assert [record["step"] for record in read_log(log)] == list(range(1, STEPS + 1))


def test_what_one_process_saved_is_read_by_process_0_for_all(tmp_path):
    with start(tmp_path / "disk0" / "run", 1, 2, every=10, log=1, seconds=0.05) as run:
        run.wait_for(lambda: checkpoint.latest(tmp_path / "disk0" / "run" / "checkpoints") == 10)
        run.signal(0, signal.SIGTERM)
        run.end()
    with start(tmp_path / "whole", 1, 2, every=10, seconds=0) as run:
        finished(run)
    with start(tmp_path / "disk{process}" / "run", 2, 1, every=10, log=1, seconds=0) as run:
        finished(run)
    assert leaves(tmp_path / "whole") == leaves(tmp_path / "disk0" / "run")
