"""`steer`, as a user runs it: questions in, a vector and a page out; a vector from a file; and wrong input."""

from __future__ import annotations

import json

import pytest

from jax_interp.cli.main import main
from jax_interp.core.json_files import read_json
from jax_interp.steering.applying import load_vectors
from jax_interp.steering.measuring import SteeringReport

QUICK = ["--questions.examples", "24", "--windows", "2", "--context", "16", "--prompts", "1", "--new-tokens", "3",
         "--strengths", "-0.3", "0", "0.3", "--sites", "blocks.1.resid_post", "--batch", "16",
         "--largest-kl", "9"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of a small run."""
    where = tmp_path_factory.mktemp("steer") / "run"
    assert main(["steer", "stdlib_small_steer", *QUICK, "--run-dir", str(where)]) == 0
    return where


def test_a_run_leaves_a_vector_its_measurement_and_a_page(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.json", "candidates.json", "report.json", "steer.html", "summary.txt"}
    saved = [load_vectors(run / f"vector.{kind}").vector for kind in ("safetensors", "gguf")]
    assert [list(one.vectors) for one in saved] == [["blocks.1.resid_post"]] * 2
    report = SteeringReport.load(run / "report.json")
    assert report.steerability.strengths == (-0.3, 0.0, 0.3)
    candidates = read_json(run / "candidates.json", nonfinite=True)
    means = [of["slope"]["mean"]["value"] for of in candidates["candidates"]]
    assert len(means) == 3
    assert means[candidates["chosen"]] == max(means)


def test_the_parts_of_the_questions_share_no_module(run):
    """What is measured was neither found nor chosen on."""
    report = SteeringReport.load(run / "report.json")
    assert 1 < report.steerability.slope.n < 24
    page = (run / "steer.html").read_text()
    assert "Continuations of test prompts" in page
    assert "independent questions: intervals are wide" in page  # the set is very small


def test_a_saved_vector_is_measured_and_none_is_found(run, tmp_path, capsys):
    again = [*QUICK, "--vector", str(run / "vector.gguf"), "--run-dir", str(tmp_path / "again")]
    assert main(["steer", "stdlib_small_steer", *again]) == 0
    one, other = (json.loads((where / "report.json").read_text()) for where in (run, tmp_path / "again"))
    assert one["propensity"] == other["propensity"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--questions.made", "yes-or-no"], "there are raise-or-return"),
        (["--questions.table", "missing.jsonl"], "missing.jsonl"),
        (["--operator", "multiply"], "no operator 'multiply'"),
        (["--placement", "middle"], "no placement 'middle'"),
        (["--strengths", "1", "2", "3"], "and 0 among them"),
        (["--contrast", "letter", "A", "B"], "has no factor 'letter'; it has continues"),
        (["--vector", "missing.gguf"], "there is no file 'missing.gguf'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(wrong, message, tmp_path, capsys):
    assert main(["steer", "stdlib_small_steer", *QUICK, "--run-dir", str(tmp_path / "run"), *wrong]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
