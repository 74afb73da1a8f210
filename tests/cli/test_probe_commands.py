"""`train-probes`, `evaluate-probes` and `monitor`, as a user runs them: a table in, a page out; and wrong input."""

from __future__ import annotations

import csv
import json

import pytest

from jax_interp.cli.main import main
from jax_interp.probes import load_probes
from jax_interp.recipes.probes.code_fragments import code_fragments

QUICK = ["--shuffles", "1", "--resets", "0", "--no-within-class", "--sites", "blocks.2.resid_post"]


def write_table(path, examples, seed=0, label="kind"):
    columns = code_fragments("inside-strings", examples, seed, length=60)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["code", label, "module"])
        writer.writerows(zip(columns["text"], columns["label"], columns["module"], strict=True))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes")
    table = write_table(folder / "fragments.csv", 120)
    columns = ["--data.columns.text", "code", "--data.columns.label", "kind", "--data.columns.group", "module"]
    run = folder / "run"
    assert main(["train-probes", "stdlib_small_probes", "--data.table", str(table), *columns, *QUICK,
                 "--control.examples", "150", "--run-dir", str(run)]) == 0  # fmt: skip
    return run


def test_training_writes_probes_figures_and_a_page(finished):
    report = json.loads((finished / "report.json").read_text())
    best = report["probes"][report["chosen"]["Logistic"]]
    assert report["data"]["examples"] == 120
    assert best["test"]["auroc"]["value"] > report["text"]["bag of words"]["auroc"]["value"]
    assert best["recalls"][0]["controls"] <= 150
    fitted = load_probes(finished / "Logistic.safetensors")
    assert fitted.axes["site"] == ("blocks.2.resid_post",)
    page = (finished / "probes.html").read_text()
    for heading in ("Chosen on validation data", "Does the model use it?", "Controls", "Scores of tokens"):
        assert heading in page
    assert set(report["causes"]) == {"Logistic", "MassMean"}


def test_a_finished_run_is_judged_on_another_table(finished, tmp_path, capsys):
    table = write_table(tmp_path / "more.csv", 60, seed=7, label="label")
    out = tmp_path / "out"
    options = ["--columns.text", "code", "--columns.group", "module", "--shown", "2", "--out", str(out)]
    assert main(["evaluate-probes", str(finished), "--tables", str(table), *options]) == 0
    assert "Logistic (blocks.2.resid_post, last" in capsys.readouterr().out
    found = json.loads((out / "evaluation.json").read_text())["probes"]
    assert [one["data"] for one in found] == ["more", "more"]
    assert all(one["auroc"]["value"] > 0.7 for one in found)
    assert "blocks.2.resid_post" in (out / "evaluation.html").read_text()


def test_texts_of_the_training_run_are_left_out(finished, tmp_path, capsys):
    own = write_table(tmp_path / "own.csv", 120)  # the table that the probes were fitted on
    options = ["--columns.text", "code", "--columns.label", "kind", "--out", str(tmp_path / "out")]
    assert main(["evaluate-probes", str(finished), "--tables", str(own), *options]) == 2
    assert "all texts of own are in" in capsys.readouterr().err


def test_a_control_table_needs_no_labels(finished, tmp_path):
    table = write_table(tmp_path / "more.csv", 60, seed=7, label="label")
    control = tmp_path / "control.csv"
    texts = code_fragments("inside-comments", 60, 9, length=60)["text"]
    control.write_text("code\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in texts), encoding="utf-8")
    options = ["--columns.text", "code", "--control", str(control), "--fprs", "0.1", "--out", str(tmp_path / "out")]
    assert main(["evaluate-probes", str(finished), "--tables", str(table), *options, "--shown", "0"]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["probes"]
    assert [one["recalls"][0]["controls"] for one in found] == [60, 60]


@pytest.mark.slow
def test_monitors_are_compared(tmp_path):
    table = write_table(tmp_path / "fragments.csv", 200)
    columns = ["--data.columns.text", "code", "--data.columns.label", "kind", "--data.columns.positive", "string"]
    run = tmp_path / "run"
    assert main(["monitor", "stdlib_small_monitor", "--data.table", str(table), *columns, "--control.examples", "100",
                 "--options.fprs", "0.1", "--run-dir", str(run)]) == 0  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    aurocs = {one["name"]: one["auroc"]["value"] for one in report["monitors"]}
    assert set(aurocs) == {"probe", "bag of words", "surprise"}
    assert aurocs["probe"] > aurocs["bag of words"]
    assert "What recall costs" in (run / "monitor.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train-probes", "stdlib_small_probes", "--data.table", "missing.csv"], "missing.csv"),
        (["train-probes", "stdlib_small_probes", "--data.made", "inside-words"], "there are inside-strings"),
        (["train-probes", "stdlib_small_probes", "--control.only", "prose"], "no class 'prose'"),
        (["evaluate-probes", "nowhere", "--tables", "x.csv"], "nowhere"),
        (["monitor", "stdlib_small_monitor", "--parts", "0.5", "0.6"], "leave nothing to train on"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not list(tmp_path.rglob("*.safetensors"))
