"""A run that starts from a checkpoint of another one: longer, or with other settings."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import pytest
from same_bits import assert_same_bits
from tiny_run import TinyConfig, batch_at, initial_state, make_step, run

from jax_interp.core.errors import UserError
from jax_interp.training import Log, ResumeWarning, SaveTo, checkpoint, fit, open_run
from jax_interp.training.metrics import read_log

CONFIG = TinyConfig(width=8)
STEP = make_step(CONFIG)
LOG = Log(every=1, quiet=True)


def start(directory, parent, steps, config=CONFIG):
    step = STEP if config == CONFIG else make_step(config)
    saving = SaveTo(directory, config, every=3, parent=parent)
    return fit(step, initial_state(config), batch_at(config), steps=steps, run=saving, log=LOG)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "parent"
    run(directory, 6, 3, CONFIG, STEP)
    return directory


@pytest.mark.parametrize("at", ["", "@3"])
def test_an_extended_run_has_the_bits_of_one_long_run(parent, tmp_path, at):
    extended = start(tmp_path / "child", f"{parent}{at}", 9)
    assert_same_bits(extended, run(tmp_path / "long", 9, 3, CONFIG, STEP))
    assert (tmp_path / "child" / "metrics.jsonl").read_bytes() == (tmp_path / "long" / "metrics.jsonl").read_bytes()
    with open_run(tmp_path / "child") as child:
        assert child.parent is not None
        assert (child.parent.run, child.parent.step) == (str(parent), 3 if at else 6)
        assert child.parent.config_sha256 == checkpoint.about(parent / "checkpoints" / "00000003")["config_sha256"]


def test_a_branch_resumes_by_itself_and_without_its_parent(parent, tmp_path):
    gone, config = shutil.copytree(parent, tmp_path / "gone"), dataclasses.replace(CONFIG, learning_rate=0.5)
    whole = start(tmp_path / "whole", gone, 9, config)
    start(tmp_path / "cut", gone, 7, config)
    shutil.rmtree(gone)
    assert_same_bits(start(tmp_path / "cut", None, 9, config), whole)
    assert_same_bits(start(tmp_path / "cut", gone, 9, config), whole)  # the same command as at first
    assert read_log(tmp_path / "cut" / "metrics.jsonl")[:6] == read_log(parent / "metrics.jsonl")


def test_what_is_refused_leaves_no_run(parent, tmp_path):
    wide = dataclasses.replace(CONFIG, width=9)
    refusals = [
        (parent, 9, wide, r"its state does not fit this config: .*W|shape \[8\], wanted \[9\].*keep the shapes"),
        (parent, 6, CONFIG, "has the 6 steps of this config already: ask for more steps"),
        (f"{parent}@4", 9, CONFIG, "has no checkpoint of step 4; it has 3, 6"),
        (tmp_path / "nothing", 9, CONFIG, "there is no directory"),
        (tmp_path / "child", 9, CONFIG, "cannot start from itself"),
    ]
    for source, steps, config, message in refusals:
        with pytest.raises(UserError, match=message):
            start(tmp_path / "child", source, steps, config)
        assert not (tmp_path / "child" / "config.json").exists()
        assert not (tmp_path / "child" / "parent.json").exists()
    start(tmp_path / "child", parent, 9)
    with pytest.raises(UserError, match=r"began from step 6 of .*, not from .*@3: choose another run directory"):
        start(tmp_path / "child", f"{parent}@3", 9)
    with pytest.raises(UserError, match="began from its own first step, not from"):
        start(parent, tmp_path / "child", 9)


def test_a_damaged_log_of_the_parent_is_left_behind(parent, tmp_path):
    damaged = shutil.copytree(parent, tmp_path / "damaged")
    (damaged / "metrics.jsonl").write_bytes(b"")
    with pytest.warns(ResumeWarning, match="was cut: .* the new run begins with an empty log"):
        start(tmp_path / "child", damaged, 9)
    assert [record["step"] for record in read_log(tmp_path / "child" / "metrics.jsonl")] == [7, 8, 9]


def test_more_steps_in_the_config_are_told_about_from(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Steps:
        steps: int = 2

    step = lambda state, batch: (state, {"loss": batch})
    fit(step, jax.numpy.zeros(2), steps=2, run=SaveTo(tmp_path, Steps()), log=LOG)
    with pytest.raises(UserError, match=rf"steps: 2 -> 4\. .* --from {tmp_path} --run-dir NEW"):
        fit(step, jax.numpy.zeros(2), steps=4, run=SaveTo(tmp_path, Steps(4)), log=LOG)
