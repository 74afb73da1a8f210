"""`jax-interp find-circuit`: a run folder on the packaged model, tables of prompts, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jax_interp.circuits.discovery.mib_file import read_mib
from jax_interp.cli.main import main
from jax_interp.models import load
from jax_interp.recipes.find_circuit import FindCircuitConfig, pairs

ROWS = [
    ("def f(data):\n    return len(", "def f(name):\n    return len(", "data", "name"),
    ("x = [(1, 2), (3, 4", "x = [(1, 2), [3, 4", ")", "]"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return load("stdlib-small")[1]


def table(tmp_path, rows, columns="clean,corrupted,answer,other"):
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join([columns, *quoted]) + "\n")
    return path


def test_a_table_is_split_into_two_sets(tmp_path, tokenizer):
    found, held_out = pairs(FindCircuitConfig(table=table(tmp_path, ROWS * 2), prompts=2, held_out=2), tokenizer)
    np.testing.assert_array_equal(found.clean, held_out.clean)


def test_wrong_requests_are_one_line(tmp_path, capsys):
    directory = ["--run-dir", str(tmp_path / "run")]
    few = ["--table", str(table(tmp_path, ROWS))]
    for options, message in (
        (["--task", "inductoin"], "Did you mean 'induction'?"),
        (few, "has 2 pairs"),
        (["--size", "0"], "share of edges"),
        (["--held-out", "1"], "two held-out ones"),
    ):
        assert main(["find-circuit", "stdlib_small_circuit", *directory, *options]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


@pytest.mark.slow
def test_a_run_writes_the_circuit_and_its_figures(tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--prompts", "4", "--held-out", "4", "--fractions", "0.02", "0.2", "--random-circuits", "2"]
    assert main(["find-circuit", "stdlib_small_circuit", "--run-dir", str(run), "--method", "eap", *options]) == 0
    assert "CPR" in capsys.readouterr().out
    assert {path.name for path in run.iterdir()} >= {
        "config.json", "circuit.json", "report.json", "circuit.html", "summary.txt",
    }  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    assert report["faithfulness"][1]["low"] > report["random"]["faithfulness"][1]["high"]
    circuit = read_mib(run / "circuit.json")
    assert circuit.keep.sum() == report["sizes"][0] > 0
    again = ["--circuit", str(run / "circuit.json"), "--run-dir", str(tmp_path / "again")]
    assert main(["find-circuit", "stdlib_small_circuit", *again, *options]) == 0
    assert json.loads((tmp_path / "again" / "report.json").read_text())["cpr"] == report["cpr"]
