"""The experiments: found by name, described, with records that their page is made of; a run from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the installed package

from experiments import table  # noqa: E402
from experiments.experiment import FIGURES, RESULTS, experiment_names, find_experiment, load_record  # noqa: E402
from jax_interp.core.errors import UserError  # noqa: E402


def test_every_experiment_says_what_it_is_and_has_a_record():
    assert {"grokking", "rotations", "tms_geometry"} <= set(experiment_names())
    for name in experiment_names():
        module = find_experiment(name)
        assert len((module.__doc__ or "").splitlines()) > 2
        assert module.Config() != module.QUICK
        record = load_record(RESULTS / f"{name}.json")
        assert record["command"] == f"python -m experiments {name}"
        assert record["rows"]
        assert (FIGURES / f"{name}.png").is_file()
    with pytest.raises(UserError, match=r"there is no experiment 'groking': .*grokking"):
        find_experiment("groking")


def test_the_page_is_what_the_records_say():
    assert (ROOT / "experiments" / "README.md").read_text() == table.page()


@pytest.mark.slow
def test_a_quick_run_writes_a_record_and_a_picture(tmp_path):
    command = [sys.executable, "-m", "experiments"]
    run = lambda *more: subprocess.run(
        [*command, *more], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    done = run("universal_and", "--quick", "--trials", "100")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out/experiments/universal_and.json").read_text())
    assert record["config"]["trials"] == 100
    assert (tmp_path / "out/experiments/universal_and.png").stat().st_size > 5000
    wrong = run("univarsal_and")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
