"""The demo, whole, on a model of two blocks; and what happens to it when it is stopped."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path

import pytest

from jax_interp.core import config_json as configs
from jax_interp.training import checkpoint


def test_from_weights_to_a_report(command, demo_json, tmp_path):
    directory = tmp_path / "demo"
    code, out, _ = command("demo", demo_json, "--run-dir", directory)
    assert code == 0
    stages = ["[1/8] Load", "[2/8] Write", "[3/8] Train", "[4/8] Evaluate", "[5/8] Find", "[6/8] Intervene",
              "[7/8] Patch", "[8/8] Report"]  # fmt: skip
    assert [out.index(stage) for stage in stages] == sorted(out.index(stage) for stage in stages)
    assert str(directory / "report.html") in out
    page = (directory / "report.html").read_text()
    assert page.count("<svg") == 5
    for fetched in ("http://", "https://", "<script src", "<link", "@import"):
        assert fetched not in page.replace("http://www.w3.org", ""), fetched
    assert page.count("url(") == page.count("url(#"), "only clip paths of the page's own figures"
    results = json.loads((directory / "results.json").read_text())
    panels = results["patching"]["panels"]
    assert set(panels) == {"resid_pre", "attn_out", "mlp_out"}
    positions = len(results["patching"]["clean_tokens"])
    assert all(len(panel) == 2 and len(panel[0]) == positions for panel in panels.values())
    at_first_layer = panels["resid_pre"][0]
    differ = [a != b for a, b in zip(results["patching"]["clean_tokens"], results["patching"]["corrupted_tokens"])]
    # the prompts differ in one token, so its embedding carries everything and the others' nothing
    assert sum(differ) == 1
    for share, carries in zip(at_first_layer, differ):
        assert share == pytest.approx(1.0 if carries else 0.0, abs=1e-4)
    assert results["features"]["found"][0]["mean_on"] > results["features"]["found"][0]["mean_elsewhere"]
    assert {column["name"] for column in results["intervention"]["columns"]} == {"clean", "ablated", "clamped"}
    effects = [page["effect"] for page in results["matter"]]
    assert effects == sorted(effects, reverse=True)
    assert effects[0] > 0
    assert results["intervention"]["feature"] == results["matter"][0]["feature"]
    for name in ("clean", "ablated", "clamped"):
        assert 0 < sum(row[name] for row in results["intervention"]["probabilities"]) <= 1 + 1e-6


def test_a_token_that_is_none(command, demo_json, tmp_path):
    code, _, err = command("demo", demo_json, "--run-dir", tmp_path, "--token", "self.items")
    assert code == 2
    assert "is not one token but" in err


def test_prompts_of_different_lengths(command, demo_json, tmp_path):
    code, _, err = command("demo", demo_json, "--run-dir", tmp_path, "--pairs.0.clean", "def push(self):")
    assert code == 2
    assert "patching position by position needs equally many" in err


def _wait_for_a_checkpoint(process, directory: Path) -> None:
    until = time.monotonic() + 600
    while checkpoint.latest(directory / "checkpoints") is None:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "no checkpoint in ten minutes"
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_dictionary(start, demo_json, longer_run, tmp_path):
    steps = 60
    run = dataclasses.replace(
        longer_run, dictionary=dataclasses.replace(longer_run.dictionary, steps=steps), checkpoint_every=5
    )
    config = json.loads(demo_json.read_text()) | {"dictionary": configs.to_json(run)}
    path = tmp_path / "killed.json"
    path.write_text(json.dumps(config))
    process = start("demo", path, "--run-dir", tmp_path / "killed")
    _wait_for_a_checkpoint(process, tmp_path / "killed" / "dictionary")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "report.html").exists()
    for name in ("killed", "whole"):
        process = start("demo", path, "--run-dir", tmp_path / name)
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        assert ("resuming after step" in err) == (name == "killed")
        assert (tmp_path / name / "report.html").exists()
    weights = [tmp_path / name / "dictionary" / "dictionary" / "dictionary.safetensors" for name in ("killed", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_ctrl_c_while_training(start, longer_run, tmp_path):
    path = tmp_path / "long.json"
    path.write_text(configs.dumps(longer_run))
    process = start("train-dictionary", path, "--run-dir", tmp_path / "run")
    _wait_for_a_checkpoint(process, tmp_path / "run")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "run the same command again to go on from there" in err.splitlines()[-1]
    assert "Traceback" not in err
