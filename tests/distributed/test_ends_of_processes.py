"""Processes that join, stop together, and end together: signals, kills, errors, hangs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from started import Started, free_port

from jax_interp.training import checkpoint
from jax_interp.training.metrics import read_log

SCRIPT = str(Path(__file__).with_name("joined_run.py"))
STEPS = 60


def start(directory, processes=2, devices=1, steps=STEPS, environment=None, **options):
    words = [f"{name}={value}" for name, value in options.items()]
    command = [SCRIPT, f"127.0.0.1:{free_port()}", str(processes), "{process}", str(directory), str(steps), *words]
    return Started(command, processes, directory.with_name("output"), devices=devices, environment=environment)


def trains(run, directory):
    """Wait until the run has logged two records."""
    run.wait_for(lambda: len(read_log(directory / "metrics.jsonl")) >= 2)


def test_two_processes_stop_together_and_go_on(tmp_path):
    directory = tmp_path / "run"
    with start(directory, log=1, seconds=0.05) as run:
        trains(run, directory)
        run.signal(1, signal.SIGTERM)
        assert run.end(60) == [143, 143], run.all_errors()
    reached = checkpoint.latest(directory / "checkpoints")
    assert reached is not None
    assert 2 <= reached < STEPS
    with start(directory, log=1, seconds=0) as run:
        assert run.end() == [0, 0], run.all_errors()
    assert checkpoint.latest(directory / "checkpoints") == STEPS
    assert [record["step"] for record in read_log(directory / "metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_when_one_is_killed(victim, tmp_path):
    directory = tmp_path / "run"
    with start(directory, log=1, every=5, steps=10_000) as run:
        run.wait_for(lambda: checkpoint.latest(directory / "checkpoints") is not None)
        run.signal(victim, signal.SIGKILL)
        codes = run.end(60)
        other = 1 - victim
        assert codes[other] == 75, run.all_errors()
        said = run.errors(other).splitlines()
        assert len(said) == 1, run.errors(other)
        assert f"process {victim} of 2 ended without a word" in said[0]
        assert "is safe: the same command goes on from it" in said[0]
