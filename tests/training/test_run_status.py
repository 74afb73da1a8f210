"""`jax-interp status`: what it says about runs in every state, real ones and those that files describe."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax.numpy as jnp
import pytest
from tiny_run import TinyConfig, batch_at, make_step, run

from jax_interp.cli.main import main
from jax_interp.cli.status import lines
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.core.locks import locked
from jax_interp.core.process_times import process_began
from jax_interp.recipes.run_status import NotARun, read_status
from jax_interp.training import Interrupted, Log, NonFinite, SaveTo, fit
from jax_interp.training.grace import Grace, GraceWarning

CONFIG = TinyConfig(width=4)
STEP = make_step(CONFIG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    run(directory, 8, 4, CONFIG, STEP, per_step={"tokens": 16})
    return directory


@pytest.fixture
def beating(finished, tmp_path):
    """A function that makes a run directory whose heartbeat differs from a running one in some entries."""

    def make(**changed):
        directory = tmp_path / "run"
        subprocess.run(["cp", "-r", finished, directory], check=True)
        values = read_json(directory / "heartbeat.json") | {"state": "running", "step": 5, "doing": "step"} | changed
        write_json(directory / "heartbeat.json", values)
        return directory

    return make


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_finished_run(finished):
    status = read_status(finished)
    assert (status.life.state, status.step, status.steps) == ("finished", 8, 8)
    assert (status.checkpoint, status.checkpoints) == (8, 2)
    assert status.record["step"] == 8
    assert status.rates["tokens/s"] > 0
    assert status.eta is None
    assert status.bytes == sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    assert status.problems == ()


def test_time_left_is_the_steps_left_over_the_speed(beating):
    directory = beating(step=20, steps=120, began=1000.0)
    times = {2: 10.0, 4: 1000.0, 8: 1002.0, 20: 1008.0}  # step 2 is of an earlier process
    rows = [{"step": k, "time": at, "steps/s": 99.0} for k, at in times.items()]
    (directory / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_status(directory).eta == pytest.approx(100 / (16 / 8))


def test_without_times_the_speed_is_a_median(beating):
    directory = beating(step=8, steps=108)
    rows = [{"step": k, "time": 0.0, "steps/s": speed} for k, speed in enumerate((100, 4, 2, 2.5, 9, 1))]
    (directory / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = read_status(directory)
    assert status.life.state == "running"
    assert status.eta == pytest.approx(100 / 2.5)  # the median of the last five


@pytest.mark.parametrize(
    ("changed", "state", "says"),
    [
        ({}, "running", "last step"),
        ({"doing": "save"}, "running", "saves"),
        ({"step": 0, "doing": "compile"}, "starting", "before its first step"),
        ({"step_time": -720.0}, "hung", "no news for 12 min, during a step"),
        ({"step_time": -720.0, "doing": "save"}, "running", "saves"),
        ({"step_time": -1200.0, "doing": "evaluate"}, "hung", "during an evaluation"),
        ({"process": "dead"}, "killed", "killed after step 5"),
        ({"process_began": "1"}, "killed", "killed after step 5"),  # another process has this number now
        ({"host": "elsewhere", "process": 1}, "running", "last step"),
        ({"host": "elsewhere", "written": -720.0}, "silent", "silent for 12 min: killed, or elsewhere"),
        ({"state": "stopped", "message": "stopped after step 5 of 8"}, "stopped", "stopped after step 5 of 8 ("),
    ],
)
def test_the_state_follows_from_the_heartbeat(beating, changed, state, says):
    now = time.time()
    fresh = {"process": os.getpid(), "process_began": process_began(os.getpid()), "step_time": 0.0, "written": 0.0}
    values = fresh | changed
    values |= {name: now + values[name] for name in ("step_time", "written")}
    if values["process"] == "dead":
        values["process"] = dead_process()
    life = read_status(beating(**values)).life
    assert life.state == state
    assert says in life.says


def test_a_process_that_goes_on_after_the_last_step_measures(beating):
    directory = beating(state="finished", process=os.getpid())
    with locked(directory / ".lock", "the run", keep=True):
        assert read_status(directory).life.state == "measuring"
    assert read_status(directory).life.state == "finished"


def test_a_run_records_how_it_ends(tmp_path):
    def ending(name, batch, error):
        with contextlib.suppress(error):
            fit(
                STEP, start(), batch, steps=6,
                run=SaveTo(tmp_path / name, CONFIG, every=2), log=Log(every=1, quiet=True),
            )  # fmt: skip
        return read_status(tmp_path / name)

    def start():
        from tiny_run import initial_state

        return initial_state(CONFIG)

    def stopping(i):
        if i == 3:
            signal.raise_signal(signal.SIGTERM)
        return batch_at(CONFIG)(i)

    def refusing(i):
        if i == 3:
            raise UserError("there is no more text")
        return batch_at(CONFIG)(i)

    def breaking(i):
        if i == 3:
            raise ZeroDivisionError("a defect")
        return batch_at(CONFIG)(i)

    def full(i):
        if i == 3:
            raise OSError(28, "No space left on device", "/a/file")
        return batch_at(CONFIG)(i)

    nan = lambda i: jnp.full_like(batch_at(CONFIG)(i), jnp.nan if i == 3 else 1)
    ends = {
        "stopped": (stopping, Interrupted, "stopped after step 4 of 6"),
        "non-finite": (nan, NonFinite, "step 4: loss is nan"),
        "refused": (refusing, UserError, "there is no more text"),
        "failed": (breaking, ZeroDivisionError, "a defect"),
        "storage": (full, (OSError, UserError), "No space left on device"),
    }
    for state, (batch, error, says) in ends.items():
        status = ending(state, batch, error)
        assert status.life.state == state
        assert says in status.life.says
        assert status.step == (4 if state == "stopped" else 3)


def test_what_is_damaged_is_named_and_the_rest_is_shown(finished, beating):
    directory = beating()
    (directory / "config.json").write_text('{"width": 4,')
    (directory / "heartbeat.json").write_text('{"state": "running"}')
    with open(directory / "metrics.jsonl", "a") as file:
        file.write('not a record\n{"step": 9, "loss"')  # the last line is incomplete, as a kill leaves it
    status = read_status(directory)
    assert status.step == 8
    assert len(status.problems) == 3
    for name in ("config.json", "heartbeat.json lacks process", "metrics.jsonl has a line that is not a record"):
        assert any(name in problem for problem in status.problems)


def test_foreign_places_are_one_line_each(tmp_path, finished, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("x")
    with pytest.raises(NotARun, match="no run is here"):
        read_status(tmp_path / "empty")
    code = main(["status", str(tmp_path / "empty"), str(tmp_path / "a file"), str(tmp_path / "none"), str(finished)])
    out, errors = capsys.readouterr()
    assert code == 2
    assert len(errors.strip().splitlines()) == 3
    assert "finished" in out


def test_a_folder_of_runs_is_a_table_and_json_is_a_list(finished, capsys):
    assert main(["status", str(finished.parent), str(finished), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [one["life"]["state"] for one in values] == ["finished", "finished"]
    assert main(["status", str(finished.parent), str(finished)]) == 0
    assert capsys.readouterr().out.count(str(finished)) == 2


def test_strange_names_and_narrow_terminals(finished, tmp_path, capsys):
    strange = tmp_path / "\x1b]52;c;aGk=\x07 [bold] \u202e"
    os.symlink(finished, strange)
    assert main(["status", str(strange)]) == 0
    assert main(["status", str(strange), str(strange)]) == 0
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\u202e")
    assert "[bold]" in out
    for line in lines(read_status(finished), 40)[1:]:
        assert len(line) <= 40


def test_it_does_not_import_jax(finished):
    code = f"import sys; from jax_interp.cli.main import main; main(['status', {str(finished)!r}])"
    code += "; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_run_warns_if_its_save_takes_longer_than_the_cluster_waits(finished, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    subprocess.run(["cp", "-r", finished, directory], check=True)
    taken = read_json(directory / "heartbeat.json")["save_seconds"]
    assert taken > 0
    with pytest.warns(GraceWarning, match="and the cluster waits"):
        Grace(taken / 2, directory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Grace(taken * 2, directory).saved(taken)
        Grace(None, directory).saved(1e9)
    monkeypatch.setenv("JAX_INTERP_GRACE_SECONDS", "0.000001")
    with pytest.warns(GraceWarning):
        run(directory, 12, 4, CONFIG, STEP)
    with pytest.raises(UserError, match="give the seconds"):
        Grace(0, directory)


@pytest.mark.slow
def test_a_process_that_is_killed_and_one_that_is_suspended(tmp_path):
    script = Path(__file__).with_name("tiny_run.py")
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "run"), "100000", "50", "16"])
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "heartbeat.json").exists() or read_status(tmp_path / "run").life.state != "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    status = read_status(tmp_path / "run")
    assert (status.life.state, status.life.process, status.life.host) == ("running", process.pid, socket.gethostname())
    process.send_signal(signal.SIGSTOP)
    assert read_status(tmp_path / "run", now=time.time() + 1000).life.state == "hung"
    process.kill()
    process.wait()
    assert read_status(tmp_path / "run").life.state == "killed"
