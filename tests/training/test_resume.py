"""The resume law: started again from any of its checkpoints, a run ends with the same bits and the same log."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from same_bits import assert_same_bits
from tiny_run import TinyConfig, make_step, run

from jax_interp.training import Interrupted, checkpoint

CONFIG = TinyConfig()
STEPS = 9


@pytest.fixture(scope="module")
def step():
    return make_step(CONFIG)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, step):
    """An uninterrupted run that kept the checkpoint of every step, and its final state."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    state = run(directory, STEPS, 1, CONFIG, step, keep=STEPS)
    return directory, state


@pytest.mark.parametrize("k", range(1, STEPS))
def test_from_every_step(whole, step, tmp_path, k):
    directory, state = whole
    again = tmp_path / "again"
    shutil.copytree(directory, again)
    for later in range(k + 1, STEPS + 1):
        shutil.rmtree(again / "checkpoints" / f"{later:08d}")
    # what the log of a killed process may hold: records past the checkpoint, and half of one
    with open(again / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 10, "lo')
    assert_same_bits(run(again, STEPS, None, CONFIG, step), state)
    assert (again / "metrics.jsonl").read_bytes() == (directory / "metrics.jsonl").read_bytes()
    on_disk, reached = checkpoint.restore(again / "checkpoints", state)
    assert reached == STEPS
    assert_same_bits(on_disk, state)


def test_checkpointing_changes_nothing(whole, step):
    assert_same_bits(run(None, STEPS, None, CONFIG, step), whole[1])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_call_goes_on(whole, step, tmp_path, signum):
    directory, state = whole

    def ask(record):
        if record["step"] == 3 and not (tmp_path / "asked").exists():
            (tmp_path / "asked").touch()
            os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match="run the same command again") as stopped:
        run(tmp_path / "run", STEPS, None, CONFIG, step, on_record=ask)
    assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) is before
    assert 3 <= stopped.value.step < STEPS
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [stopped.value.step]
    assert_same_bits(run(tmp_path / "run", STEPS, None, CONFIG, step, on_record=ask), state)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (directory / "metrics.jsonl").read_bytes()


def test_a_finished_run_is_left_as_it_is(whole, step):
    directory, state = whole
    log = (directory / "metrics.jsonl").read_bytes()
    assert_same_bits(run(directory, STEPS, 1, CONFIG, step), state)
    assert (directory / "metrics.jsonl").read_bytes() == log


def test_a_damaged_last_step_costs_only_its_own_work(whole, step, tmp_path):
    directory, state = whole
    again = tmp_path / "again"
    shutil.copytree(directory, again)
    (again / "checkpoints" / f"{STEPS:08d}" / "leaves.json").unlink()
    with pytest.warns(checkpoint.CheckpointWarning, match=rf"{STEPS:08d} is damaged.*using step {STEPS - 1} instead"):
        assert_same_bits(run(again, STEPS, None, CONFIG, step), state)
    assert_same_bits(checkpoint.restore(again / "checkpoints", state, STEPS)[0], state)  # written anew
