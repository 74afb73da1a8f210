"""Every command that divides its work gives over two processes what it gives in one, and only the first one prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jax_interp.cli.main import COMMANDS, IN_ONE_PROCESS
from jax_interp.core import config_json
from jax_interp.core.json_files import read_json
from tests.cli.conftest import model, run_config, run_json, text  # noqa: F401  (fixtures)
from tests.cli.test_probe_commands import write_table
from tests.distributed.started import Started, free_port

pytestmark = pytest.mark.slow
SCRIPT = str(Path(__file__).with_name("commands_script.py"))
ARRANGEMENTS = {"one device": (1, 1), "two devices": (1, 2), "two processes": (2, 1)}
PAIR = {
    "clean": "def f(data):\n    return len(", "corrupted": "def f(name):\n    return len(", "answer": "data",
    "other": "name",
}  # fmt: skip
PAIR_WORDS = [word for name, value in PAIR.items() for word in (f"--{name}", value)]
SMALL_SETS = ["--data.context", "32", "--control.examples", "104"]
TOLERANCE = 2e-3
"""Sums over rows are added in another order, and a training of a few steps makes the differences larger."""

FIGURES = {
    "train-dictionary": ["dictionary/evaluation.json"],
    "evaluate": ["evaluation.json"],
    "dashboard": ["page/features/features.json"],
    "bench-dictionary": ["benchmark.json"],
    "decompose": ["spd/evaluation.json"],
    "train-lm": ["lm/results.json"],
    "train-probes": ["probes/report.json"],
    "evaluate-probes": ["judged/evaluation.json"],
    "monitor": ["monitor/report.json"],
    "patch": ["patch/results.json"],
    "attribute": ["attribute/attribution.json"],
    "find-circuit": ["circuit/report.json"],
    "explain": ["explain/explain.json"],
}


def plan(folder: Path, run: str, labelled: str, model_path: str) -> dict[str, list[str]]:
    at = lambda name: str(folder / name)
    return {
        "train-dictionary": ["train-dictionary", run, "--run-dir", at("dictionary")],
        "evaluate": ["evaluate", at("dictionary"), "--sequences", "8", "--json", at("evaluation.json")],
        "dashboard": ["dashboard", at("dictionary"), "--tokens", "256", "--count", "8", "--loss-examples", "2",
                      "--token-examples", "1", "--out", at("page"), "--neuronpedia", at("neuronpedia")],
        "bench-dictionary": ["bench-dictionary", at("dictionary"), "--tasks", "description-length", "--reseeds", "2",
                             "--sequences", "8", "--json", at("benchmark.json")],
        "decompose": ["decompose", "tms_5_2_spd_tiny", "--run-dir", at("spd")],
        "train-lm": ["train-lm", "stdlib_tiny", "--steps", "24", "--text.max-documents", "20", "--evaluate-windows",
                     "8", "--final-windows", "8", "--run-dir", at("lm")],
        "train-probes": ["train-probes", "stdlib_small_probes", "--data.examples", "64", *SMALL_SETS, "--sites",
                         "blocks.1.resid_post", "--shuffles", "1", "--run-dir", at("probes")],
        "evaluate-probes": ["evaluate-probes", at("probes"), "--tables", labelled, "--columns.text", "code",
                            "--columns.group", "module", "--columns.label", "kind", "--out", at("judged")],
        "monitor": ["monitor", "stdlib_small_monitor", "--model", model_path, "--site", "blocks.1.resid_post",
                    "--data.examples", "160", *SMALL_SETS, "--run-dir", at("monitor")],
        "patch": ["patch", "--out", at("patch"), "--grids", "head_out", *PAIR_WORDS],
        "attribute": ["attribute", "--prompts", "8", "--check", "4", "--rows", "4", "--out", at("attribute")],
        "find-circuit": ["find-circuit", "stdlib_small_circuit", "--prompts", "4", "--held-out", "4",
                         "--random-circuits", "1", "--fractions", "0.05", "0.5", "--options.steps", "2", "--run-dir",
                         at("circuit")],
        "explain": ["explain", "stdlib-small", "def f(self, data):\\n    return data", "--count", "8", "--out",
                    at("explain")],
    }  # fmt: skip


@pytest.fixture(scope="module")
def folders(run_config, model, tmp_path_factory):  # noqa: F811
    """The results of all commands in each arrangement."""
    import dataclasses

    from jax_interp.recipes.feature_page import FeaturePageConfig

    root = tmp_path_factory.mktemp("commands")
    config = dataclasses.replace(run_config, page=FeaturePageConfig(features=4, tokens=64, examples=2))
    (root / "tiny.json").write_text(config_json.dumps(config))
    labelled = write_table(root / "labelled.csv", 60, seed=7)
    found = {}
    for name, (processes, devices) in ARRANGEMENTS.items():
        folder = root / name.replace(" ", "-")
        folder.mkdir()
        commands = plan(folder, str(root / "tiny.json"), str(labelled), str(model))
        if (processes, devices) == (1, 2):
            commands = {name: [*words, "--mesh", "data=2"] for name, words in commands.items()}
        (folder / "plan.json").write_text(json.dumps(commands))
        words = [SCRIPT, f"127.0.0.1:{free_port()}", str(processes), "{process}", str(folder / "plan.json")]
        with Started(words, processes, folder / "processes", devices=devices) as run:
            assert run.end(3000) == [0] * processes, f"{name}:\n{run.all_errors()}"
        found[name] = folder
    return found


def test_every_divided_command_is_here():
    assert set(FIGURES) == set(COMMANDS) - IN_ONE_PROCESS - {"store"}  # tests of stores have their own processes


@pytest.mark.parametrize("command", FIGURES)
@pytest.mark.parametrize("arrangement", ["two devices", "two processes"])
def test_figures_are_those_of_one_device(command, arrangement, folders):
    for file in FIGURES[command]:
        alone, there = (read_json(folders[name] / file, nonfinite=True) for name in ("one device", arrangement))
        assert differences(alone, there) == []


@pytest.mark.parametrize("command", FIGURES)
def test_only_the_first_process_prints(command, folders):
    folder = folders["two processes"]
    text = lambda process, kind: (folder / f"{command}.{process}.{kind}").read_text()  # noqa: F811
    assert text(1, "out") == ""
    assert text(1, "err") == ""
    alone = (folders["two devices"] / f"{command}.0.out").read_text()
    assert [line.split()[:1] for line in text(0, "out").splitlines()] == [
        line.split()[:1] for line in alone.splitlines()
    ]


def test_there_is_one_set_of_files(folders):
    assert files(folders["two processes"]) == files(folders["one device"])


def files(folder: Path) -> set[str]:
    """The files of the results, without what orbax stores for each process and what tests wrote."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.parent != folder}
    return {str(path) for path in found if "checkpoints" not in path.parts and path.parts[0] != "processes"}


def differences(one, other, where: str = "") -> list[str]:
    """The places where two JSON values differ by more than rounding."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [line for key in one for line in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [line for i, (a, b) in enumerate(zip(one, other)) for line in differences(a, b, f"{where}[{i}]")]
    number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    if number(one) and number(other):
        close = one == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE, nan_ok=True)
        return [] if close else [f"{where}: {one} and {other}"]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]
