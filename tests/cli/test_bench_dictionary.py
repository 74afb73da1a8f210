"""bench-dictionary: a small dictionary, labelled tables, and what a user may get wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from jax_interp.core.json_files import read_json
from jax_interp.recipes.bench_tables import tables_for

CODERS = ["dictionary", "random", "principal components", "raw values"]
SMALL = ("--reseeds", 2, "--ks", 1, 2, "--texts", 14, "--quiet")


@pytest.fixture(scope="module")
def trained(run_json, tmp_path_factory):
    from jax_interp.cli.main import main

    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train-dictionary", str(run_json), "--run-dir", str(directory), "--quiet"]) == 0
    return directory


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """One table for each benchmark, and one for none. The labels can be read off the texts."""
    directory = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    words = np.array(["self", "item", "value", "class", "return", "push", "Queue", "Stack"])

    def write(name, rows, columns=("text", "label")):
        with open(directory / name, "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])

    sentence = lambda word: " ".join([word, *rng.choice(words, 4)])
    write("two.csv", [(f"{sentence('def' if i % 2 else 'if')} {i}", i % 2) for i in range(60)])
    write("three.csv", [(f"{sentence(('def', 'if', 'for')[i % 3])} {i}", "abc"[i % 3]) for i in range(60)])
    write("many.csv", [(f"{i} x", i) for i in range(40)])
    both = [
        (f"{sentence('def' if i % 2 else 'if')} {'x' if i // 2 % 2 else 'y'} {i}", i % 2, i // 2 % 2) for i in range(80)
    ]
    write("paired.csv", both, ("text", "label", "other"))
    return directory


@pytest.mark.slow
def test_every_benchmark_beside_its_baselines(trained, tables, text, command):
    paired = tables / "paired.csv"
    texts = ("--forget", text, "--retain", text)
    code, out, err = command("bench-dictionary", trained, "--probes", paired, "--spurious", "other", *texts, *SMALL)
    assert code == 0, err
    figures = read_json(out.rsplit("written to ", 1)[1].strip())
    names = [measure["name"] for measure in figures["measures"]]
    for name in ("probing accuracy, k=1", "description length, bits", "description length, FVU", "SCR, top 2"):
        assert name in names
        assert name in out
    assert "has the score 0 in the unchanged model" in figures["left_out"]["unlearning"]  # the model is random
    for measure in figures["measures"]:
        if measure["name"] != "probing accuracy, all":
            assert list(measure["estimates"]) == CODERS
        for estimate in measure["estimates"].values():
            if estimate["low"] is not None:
                assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert all(
        m["warning"].startswith("unreliable") for m in figures["measures"] if m["name"].startswith(("SCR", "TPP"))
    )
    assert set(figures["left_out"]) >= {"tpp"}
    assert "not measured: tpp: no table of 3 to 10 classes" in out
    written = Path(out.rsplit("written to ", 1)[1].strip())
    assert written.parent == trained
    assert "NaN" not in written.read_text()


def test_the_same_figures_again_and_numbered_files(trained, tables, command):
    call = ("bench-dictionary", trained, "--tasks", "probing", "--probes", tables / "two.csv", *SMALL)
    code, out, _ = command(*call)
    assert code == 0
    written = out.rsplit("written to ", 1)[1].strip()
    code, again, _ = command(*call)
    assert again.rsplit("written to ", 1)[1].strip() == written
    assert read_json(written)["settings"]["tasks"] == ["probing"]
    code, out, _ = command(*call, "--seed", 3)
    assert out.rsplit("written to ", 1)[1].strip() != written


def test_tables_go_to_their_benchmarks(tables):
    found, reasons = tables_for(str(tables), spurious=None)
    assert [t.name for t in found.two] == ["paired", "two"]
    assert [t.name for t in found.several] == ["three"]
    assert "many has 40 classes" in found.unused["many"]
    assert set(reasons) == {"scr"}
    assert [t.name for t in tables_for(str(tables), most=1)[0].two] == ["paired"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "probing"), "the task probing cannot be measured: no labelled texts: give --probes"),
        (("--tasks", "unlearning"), "the task unlearning cannot be measured: no texts: give --forget and --retain"),
        (("--tasks", "ravel"), "ravel"),
        (("--forget", "x"), "give both --forget and --retain"),
        (("--spurious", "x"), "give them too"),
        (("--probes", "nowhere"), "no labelled texts at 'nowhere'"),
        (("--probes", "sae-probes"), "sae-probes is not installed: `pip install --no-deps sae-probes`"),
        (("--reseeds", "0"), "reseeds=0 must be at least 1"),
        (("--model", "nowhere"), "nowhere"),
        (("--json", "/none/x.json"), "there is no directory /none"),
    ],
)
def test_mistakes_are_one_line(trained, command, options, message, monkeypatch):
    from importlib import metadata

    found = metadata.distribution

    def without_tables(name):
        if name == "sae-probes":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "distribution", without_tables)
    code, _, err = command("bench-dictionary", trained, *options)
    assert code == 2
    assert err.count("\n") == 1, err
    assert message in err


def test_tables_of_the_wrong_kind_for_a_task(trained, tables, command):
    for name, task, message in (
        ("three.csv", "probing", "no table of two classes"),
        ("two.csv", "tpp", "no table of 3 to 10 classes"),
        ("many.csv", "probing", "many has 40 classes"),
    ):
        code, _, err = command("bench-dictionary", trained, "--probes", tables / name, "--tasks", task)
        assert code == 2
        assert message in err
