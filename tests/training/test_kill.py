"""Runs that are killed. A process of their own each, SIGKILL at random moments, also while a checkpoint is written."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from same_bits import assert_same_bits
from tiny_run import TinyConfig, initial_state, make_step, run

from jax_interp.training import checkpoint
from jax_interp.training.metrics import read_log

CONFIG = TinyConfig(width=256)  # a megabyte of state: writing it takes tens of milliseconds
STEPS, EVERY = 40, 3
SCRIPT = Path(__file__).with_name("tiny_run.py")


STEP = make_step(CONFIG)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return directory, run(directory, STEPS, EVERY, CONFIG, STEP)


def start(directory):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(directory), str(STEPS), str(EVERY), str(CONFIG.width)],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(process, condition):
    """Poll until `condition()` or the end of the process; whether the condition came first."""
    deadline = time.monotonic() + 300
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < deadline, "the run does nothing"
        time.sleep(0.0005)
    return False


def kill(process):
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def finish(directory, whole, here=False):
    """Start the run once more, let it end, and compare everything with the run that was never interrupted.

    `here`: in this process, which saves the seconds that starting another one takes.
    """
    reference, state = whole
    if here:
        run(directory, STEPS, EVERY, CONFIG, STEP)
    else:
        process = start(directory)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    back, step = checkpoint.restore(directory / "checkpoints", jax.tree.map(jax.numpy.asarray, initial_state(CONFIG)))
    assert step == STEPS
    assert_same_bits(back, state)  # parameters, optimizer, buffer, key, cursor, counters
    assert (directory / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    assert (directory / "config.json").read_bytes() == (reference / "config.json").read_bytes()
    assert not list((directory / "checkpoints").glob(".*")), "what killed saves left is cleared away"


def kill_in_a_write(directory, delay):
    """SIGKILL `delay` seconds after a save has begun. Whether there was one, and whether it was cut off."""
    checkpoints = directory / "checkpoints"
    before = checkpoint.latest(checkpoints)
    process = start(directory)
    if not wait_until(process, lambda: any(checkpoints.glob(".*.tmp")) and checkpoint.latest(checkpoints) != before):
        process.communicate()
        return False
    wait_until(process, lambda: not any(checkpoints.glob(".*.tmp")))  # from the next save's first moment on
    wait_until(process, lambda: any(checkpoints.glob(".*.tmp")))
    time.sleep(delay)
    kill(process)
    return any(checkpoints.glob(".*.tmp"))


def kill_at_random(directory, rng):
    """SIGKILL at a random moment of the next stretch of steps, wherever that is."""
    reached = lambda: len(read_log(directory / "metrics.jsonl"))
    process = start(directory)
    target = reached() + rng.randint(1, 8)
    if wait_until(process, lambda: reached() >= target):
        time.sleep(rng.random() * 0.05)
        if process.poll() is None:
            kill(process)
            return
    process.communicate()


def test_killed_in_a_write_and_at_random(tmp_path, whole):
    rng = random.Random(0)
    kill_in_a_write(tmp_path / "run", 0.004)
    kill_at_random(tmp_path / "run", rng)
    assert 0 < checkpoint.latest(tmp_path / "run" / "checkpoints") < STEPS
    finish(tmp_path / "run", whole, here=True)


def test_interrupted_from_the_keyboard(tmp_path, whole):
    process = start(tmp_path / "run")
    assert wait_until(process, lambda: len(read_log(tmp_path / "run" / "metrics.jsonl")) >= 5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "run the same command again to go on from there" in errors
    assert "Traceback" not in errors
    finish(tmp_path / "run", whole, here=True)


@pytest.mark.slow
def test_killed_many_times(tmp_path, whole):
    rng = random.Random(1)
    cut_off = 0
    for trial in range(4):
        cut_off += kill_in_a_write(tmp_path / f"write{trial}", rng.random() * 0.03)
        finish(tmp_path / f"write{trial}", whole)
    assert cut_off, "no save was cut off: make the state larger"
    for _ in range(8):
        kill_at_random(tmp_path / "random", rng)
    finish(tmp_path / "random", whole)
