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


def saved_twice(directory):
    """Then every process knows of the first checkpoint."""
    return len(checkpoint.steps(directory / "checkpoints")) > 1


def test_two_processes_stop_together_and_go_on(tmp_path):
    directory = tmp_path / "run"
    with start(directory, log=1, seconds=0.05) as run:
        run.wait_for(lambda: len(read_log(directory / "metrics.jsonl")) >= 2)
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
@pytest.mark.parametrize(("processes", "victim"), [(2, 0), (2, 1), (3, 0), (3, 1)])
def test_the_others_end_when_one_is_killed(processes, victim, tmp_path):
    directory = tmp_path / "run"
    with start(directory, processes, log=1, every=5, steps=10_000) as run:
        run.wait_for(lambda: saved_twice(directory))
        run.signal(victim, signal.SIGKILL)
        codes = run.end(60)
        for other in set(range(processes)) - {victim}:
            assert codes[other] == 75, run.all_errors()
            (said,) = run.errors(other).splitlines()
            assert f"process {victim} of {processes} ended without a word" in said
            assert "is safe: the same command goes on from it" in said


@pytest.mark.slow
def test_a_kill_after_the_training_says_that_the_last_step_is_safe(tmp_path):
    directory = tmp_path / "run"
    with start(directory, steps=10, after=100) as run:
        run.wait_for(lambda: checkpoint.latest(directory / "checkpoints") == 10)
        run.signal(0, signal.SIGKILL)
        assert run.end(60)[1] == 75
        (said,) = run.errors(1).splitlines()
        assert "Step 10 of" in said


@pytest.mark.slow
@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_of_one_process_ends_the_others_with_its_reason(culprit, tmp_path):
    with start(tmp_path / "run", every=3, fails=culprit) as run:
        assert run.end() == [2, 2], run.all_errors()
        (own,), (other,) = run.errors(culprit).splitlines(), run.errors(1 - culprit).splitlines()
        assert own == "error: the batch of step 5 cannot be read"
        assert other == (
            f"jax-interp: process {culprit} of 2 stopped: the batch of step 5 cannot be read. Process {1 - culprit} "
            f"ends too. Step 3 of {tmp_path / 'run'} is safe: the same command goes on from it"
        )


@pytest.mark.slow
def test_an_error_of_all_processes_is_printed_once(tmp_path):
    with start(tmp_path / "run", every=3, log=1, nan="") as run:
        assert run.end() == [1, 1], run.all_errors()
        (said,) = run.errors(0).splitlines()
        assert "step 5: loss is nan" in said
        assert run.errors(1) == ""


@pytest.mark.slow
def test_a_stop_is_soon_also_with_a_rare_log(tmp_path):
    directory = tmp_path / "run"
    with start(directory, log=100_000, every=5, steps=100_000, seconds=0.1) as run:
        run.wait_for(lambda: checkpoint.latest(directory / "checkpoints") is not None)
        run.signal(0, signal.SIGTERM)
        assert run.end(30) == [143, 143], run.all_errors()
    assert "stopped after step" in run.errors(0) + run.errors(1)


@pytest.mark.slow
def test_a_stopped_process_does_not_hang_the_others(tmp_path):
    directory = tmp_path / "run"
    with start(directory, log=1, every=5, steps=10_000, environment={"JAX_INTERP_HANG_SECONDS": "15"}) as run:
        run.wait_for(lambda: saved_twice(directory))
        run.signal(1, signal.SIGSTOP)
        assert run.end(90, skip=[1])[0] == 76, run.all_errors()
        (said,) = run.errors(0).splitlines()
        assert "no step has ended for 15 s: process 0 waits for step" in said
        assert "process 1 does not answer" in said
        assert "is safe: the same command goes on from it" in said
        stacks = (directory / "stacks-process-0.txt").read_text()
        assert "in fit" in stacks
        run.signal(1, signal.SIGCONT)
        assert run.end(30) == [76, 76]


@pytest.mark.slow
def test_a_process_that_waits_elsewhere_does_not_hang_the_others(tmp_path):
    directory = tmp_path / "run"
    with start(directory, log=1, every=3, hangs=1, environment={"JAX_INTERP_HANG_SECONDS": "15"}) as run:
        assert run.end(120) == [76, 76], run.all_errors()
        assert "does not answer" not in run.all_errors()
        assert "batch_at" in (directory / "stacks-process-1.txt").read_text()


@pytest.mark.slow
def test_processes_with_other_texts_are_refused(tmp_path):
    port = free_port()
    command = [SCRIPT, f"127.0.0.1:{port}", "2", "{process}", str(tmp_path / "run"), "5", "same={process}"]
    with Started(command, 2, tmp_path / "output") as run:
        assert run.end() == [2, 2]
        for index in range(2):
            (said,) = run.errors(index).splitlines()
            assert "differs from process 0: the text is 1 there, and 0 in process 0" in said
    assert not (tmp_path / "run").exists()
