"""Copies of the log for other programs. After a kill no step is there twice and none is missing."""

from __future__ import annotations

import json
import os

import jax.numpy as jnp
import pytest

from jax_interp.core.errors import UserError
from jax_interp.training import Log, SaveTo, fit
from jax_interp.training.log_writers import WRITERS


class Killed(Exception):
    """Stands for a kill: nothing runs after it but what closes files."""


def steps_of(directory, to, until=None):
    """A run of ten steps with a checkpoint every four, which dies before batch `until`."""

    def batch_at(index):
        if index == until:
            raise Killed
        return jnp.float32(index)

    step = lambda state, batch: (state + batch, {"loss": state, "parts": {"a": batch}, "hist": jnp.arange(3)})
    fit(
        step, jnp.float32(0), batch_at, steps=10, run=SaveTo(directory, every=4), log=Log(every=1, to=(to,), quiet=True)
    )


def killed_and_resumed(directory, to):
    for until in (7, 9):
        with pytest.raises(Killed):
            steps_of(directory, to, until)
    steps_of(directory, to)


def test_a_writer_of_ones_own_gets_the_records_of_the_log(tmp_path):
    seen, closed = [], []

    class Rows:
        def __init__(self, run, records):
            seen[:] = [record["step"] for record in records]

        def write(self, record):
            seen.append(record["step"])

        def close(self):
            closed.append(len(seen))

    killed_and_resumed(tmp_path, Rows)
    assert seen == list(range(1, 11))
    assert len(closed) == 3


def test_what_is_missing_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in WRITERS:
        with pytest.raises(UserError, match=rf"needs the package '{name}': pip install 'jax_interp\[{name}\]'"):
            Log(to=(name,))
    with pytest.raises(UserError, match="no log goes to 'tensorbord': it can go to tensorboard, wandb"):
        Log(to=("tensorbord",))
    with pytest.raises(UserError, match="needs a run directory"):
        fit(lambda s, b: (s, {}), jnp.float32(0), steps=1, log=Log(to=(lambda run, records: None,)))


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed_and_resumed(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "parts.a"}
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 11))
    logged = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("loss")] == logged


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sent = []
    monkeypatch.setattr(wandb.Run, "log", lambda self, data, step=None, **rest: sent.append((step, data)))
    killed_and_resumed(tmp_path, "wandb")
    assert [step for step, _ in sent] == list(range(1, 11))
    assert sent[3][1] == {"loss": 3.0, "parts.a": 3.0}
    assert any(name.startswith("offline-run") for name in os.listdir(tmp_path / "wandb"))
