"""The options that the commands which train have in common: --from, --log-to, and what a finished run says."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest

from jax_interp.cli.main import _warnings_on_one_line, main


@pytest.fixture(scope="module")
def trained(run_json, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "parent"
    assert main(["train-dictionary", str(run_json), "--run-dir", str(directory), "--quiet"]) == 0
    return directory


def test_a_finished_run_is_extended(trained, command, tmp_path):
    more = ("--dictionary.steps", 16, "--quiet")
    code, _, err = command("train-dictionary", trained, *more)
    assert code == 2
    assert "dictionary.steps: 12 -> 16" in err
    assert f"--from {trained} --run-dir NEW" in err
    child = tmp_path / "child"
    for _ in range(2):  # the same command resumes it
        code, _, err = command("train-dictionary", "--from", f"{trained}@12", "--run-dir", child, *more)
        assert (code, err) == (0, "")
    assert json.loads((child / "parent.json").read_text())["step"] == 12
    assert f"It began at step 12 of {trained}." in (child / "report.html").read_text()
    assert json.loads((child / "config.json").read_text())["dictionary"]["steps"] == 16
    steps = [json.loads(line)["step"] for line in (child / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 17, 2))


def test_what_from_refuses(trained, command, tmp_path):
    code, _, err = command("train-dictionary", "--from", trained, "--dictionary.steps", 16)
    assert (code, "give its directory with --run-dir" in err) == (2, True)
    code, _, err = command(
        "train-dictionary", "--from", trained, "--run-dir", tmp_path / "x", "--dictionary.n-features", 64,
        "--dictionary.steps", 16, "--quiet",
    )  # fmt: skip
    assert code == 2
    assert "its state does not fit this config: " in err
    assert "wanted [64" in err
    assert not (tmp_path / "x" / "config.json").exists()


def test_a_log_goes_nowhere_unknown(trained, command, monkeypatch):
    code, _, err = command("train-dictionary", trained, "--log-to", "tensorbord")
    assert (code, "tensorbord" in err) == (2, True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = command("train-dictionary", trained, "--log-to", "wandb")
    assert (code, "pip install 'jax_interp[wandb]'" in err) == (2, True)


def test_an_evaluation_replaces_no_other(trained, command, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    first = (run / "evaluation.json").read_bytes()
    code, out, _ = command("evaluate", run)  # the same figures
    assert (code, out.splitlines()[-1]) == (0, f"written to {run / 'evaluation.json'}")
    for _ in range(2):
        code, out, _ = command("evaluate", run, "--sequences", 2)
        assert (code, out.splitlines()[-1]) == (0, f"written to {run / 'evaluation-2.json'}")
    assert (run / "evaluation.json").read_bytes() == first
    code, _, err = command("evaluate", run, "--json", run / "evaluation.json", "--sequences", 2)
    assert (code, "exists and holds something else" in err) == (2, True)


def test_a_warning_is_one_line():
    with _warnings_on_one_line():
        assert warnings.formatwarning(UserWarning("a\n  b"), UserWarning, "x.py", 1) == "jax-interp: warning: a b\n"
    assert "x.py" in warnings.formatwarning(UserWarning("a"), UserWarning, "x.py", 1)
