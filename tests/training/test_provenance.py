"""A checkpoint is bound to its config and its log; what else differs is one warning."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import pytest
from tiny_run import TinyConfig, initial_state, make_step, run

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.training import ResumeWarning, StorageError, checkpoint, fit

CONFIG = TinyConfig(width=8)
STEP = make_step(CONFIG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    run(directory, 6, 3, CONFIG, STEP)
    return directory


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run that a test may damage."""
    return shutil.copytree(finished, tmp_path / "run")


def test_what_a_checkpoint_records(finished):
    about = checkpoint.about(checkpoint.path_of(finished / "checkpoints", 3))
    assert about["config"] == {"type": "TinyConfig", "width": 8, "learning_rate": 0.01}
    assert about["versions"].keys() >= {"jax", "jax_interp", "flax", "python", "cores", "device"}
    lines = (finished / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert about["log"]["bytes"] == sum(map(len, lines[:3]))


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_another_config_beside_the_checkpoints_is_refused(copied, change):
    """An edited config.json is asked for, as the run directory is a config; or it is gone, and another one is given."""
    if change == "edited":
        values = read_json(copied / "config.json")
        (copied / "config.json").write_text(json.dumps(values | {"learning_rate": 0.5}))
    else:
        (copied / "config.json").unlink()
    with pytest.raises(UserError, match=r"step 6 .* learning_rate: 0\.01 -> 0\.5.*--from .*/run --run-dir NEW"):
        run(copied, 9, 3, dataclasses.replace(CONFIG, learning_rate=0.5), STEP)
    assert (copied / "config.json").exists() == (change == "edited")
    assert checkpoint.latest(copied / "checkpoints") == 6
    if change == "removed":  # and its own config brings the file back
        run(copied, 9, 3, CONFIG, STEP)
        assert (copied / "config.json").exists()


@pytest.mark.parametrize("damage", ["cut", "edited", "removed"])
def test_a_log_that_is_not_the_checkpoints_is_refused(copied, damage):
    log = copied / "metrics.jsonl"
    whole = log.read_bytes()
    if damage == "removed":
        log.unlink()
    else:
        log.write_bytes(whole[:-1] if damage == "cut" else whole.replace(b"0.", b"1.", 1))
    with pytest.raises(UserError, match=r"metrics\.jsonl was (cut|changed): .*Bring the file back.*--from"):
        run(copied, 9, 3, CONFIG, STEP)
    log.write_bytes(whole)
    run(copied, 9, 3, CONFIG, STEP)


def test_other_versions_are_one_warning(copied, monkeypatch):
    monkeypatch.setattr("jax_interp.training.runs.versions", lambda: {"jax": "9.9.9", "cores": "3"})
    with pytest.warns(
        ResumeWarning, match=r"goes on from step 6 with jax \S+ -> 9\.9\.9, cores \d+ -> 3: its bits may"
    ):
        run(copied, 9, 3, CONFIG, STEP)


def test_the_same_versions_are_no_warning(copied):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(copied, 9, 3, CONFIG, STEP)


def test_checkpoints_of_earlier_versions_resume(copied):
    """They record nothing beside their leaves."""
    for step in checkpoint.steps(copied / "checkpoints"):
        file = checkpoint.path_of(copied / "checkpoints", step) / "leaves.json"
        body = json.loads(file.read_text().partition("\n")[2])
        del body["about"]
        text = json.dumps(body, indent=1)
        file.write_text(f"{checkpoint.hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
    with open(copied / "metrics.jsonl", "a") as log:
        log.write('{"step": 7, "loss": 1.0}\n')
    run(copied, 9, 3, CONFIG, STEP)
    steps = [json.loads(line)["step"] for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 10))


def test_a_place_that_cannot_be_written_is_one_line(copied, monkeypatch):
    def refused(path, arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_arrays", refused)
    with pytest.raises(
        StorageError, match=r"No space left on device; free some space.* Step 6 of .*/run is safe"
    ) as stop:
        run(copied, 9, 3, CONFIG, STEP)
    assert stop.value.step == 6
    assert not list((copied / "checkpoints").glob(".*"))
    monkeypatch.undo()
    run(copied, 9, 3, CONFIG, STEP)


def test_a_run_without_a_config_records_its_log(tmp_path):
    fit(lambda state, batch: (state, {"loss": batch}), initial_state(CONFIG), steps=2, run=tmp_path)
    assert checkpoint.about(checkpoint.path_of(tmp_path / "checkpoints", 2)).keys() == {"versions", "log"}
