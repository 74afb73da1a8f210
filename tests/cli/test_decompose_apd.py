"""decompose with APD: what it leaves, that it goes on to the same bits, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import signal

import jax
import numpy as np
import pytest

from jax_interp.core import config_json as configs
from jax_interp.decomposition.apd import APDConfig, load_apd, train_apd
from jax_interp.recipes.decomposition import DecompositionRunConfig
from jax_interp.recipes.decomposition import apd as apd_recipe
from jax_interp.toys import tms
from jax_interp.toys.tms import TIED, TMSConfig, init_tms

CONFIG = DecompositionRunConfig(
    APDConfig(tied=TIED, C=3, rank=2, top_k=0.1, steps=12, batch=32, source="by hand"),
    evaluate_rows=64,
    linearity_rows=8,
    adversary_steps=(3,),
    log_every=2,
    checkpoint_every=4,
)


def drawn(name: str, seed: int):
    """A target as it is drawn, of three features."""
    return init_tms(jax.random.key(seed + 1), TMSConfig(3, 2))


@pytest.fixture(scope="module", autouse=True)
def targets():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tms, "tms_target", drawn)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "apd.json"
    path.write_text(configs.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def finished(path, tmp_path_factory):
    """The directory of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "run"
    from jax_interp.cli.main import main

    assert main(["decompose", str(path), "--run-dir", str(run), "--quiet"]) == 0
    return run


def test_what_a_run_leaves(finished):
    assert configs.load(DecompositionRunConfig, finished) == CONFIG
    result = json.loads((finished / "evaluation.json").read_text())
    assert (result["target"], result["source"]) == ("tms:5-2", "by hand")
    assert {"faithfulness", "relative_faithfulness", "threshold", "probe", "mmcs", "ml2r"} <= set(result)
    assert set(result["losses"]) == {"loss", "parameter_match", "top_k_reconstruction", "simplicity"}
    assert set(result["error"]) == {"top_k", "unmasked", "zero"}
    np.testing.assert_allclose(result["losses"]["top_k_reconstruction"], result["error"]["top_k"], rtol=1e-5)
    assert len(result["rate"]) == 3
    np.testing.assert_allclose(sum(result["rate"]), result["l0"], rtol=1e-5)
    np.testing.assert_allclose(result["l0"], int(0.1 * 64) / 64, err_msg="the top k of the rows evaluated")
    linear = {row["name"]: row for row in result["linearity"]}
    assert linear["strict"]["excess"] is not None
    assert "adversarial, shared_across_batch, 3 steps" in linear
    assert [row["name"] for row in result["composites"]][::4] == [
        "1 on, needed parts alone",
        "2 on, needed parts alone",
    ]
    page = (finished / "report.html").read_text()
    assert "3 With some components kept" in re.sub(r"</?span>", "", page)
    assert "Is weight linearity real?" in page
    assert page.count("<svg") == 5, "losses, attributions, shares with singular values, linearity, vectors"


def test_what_was_trained_is_loaded(finished):
    """Of the target at hand, and as the last checkpoint has it."""
    from jax_interp.decomposition.apd.train import init_state
    from jax_interp.training import QUIET, SaveTo, fit

    target = drawn("5-2", 0)
    trained, settings = load_apd(finished / "decomposition.safetensors", target)
    assert settings == CONFIG.decomposition
    state = fit(
        lambda *_: pytest.fail("no step is left"),
        init_state(settings, target),
        steps=settings.steps,
        run=SaveTo(finished, CONFIG),
        log=QUIET,
    )
    jax.tree.map(np.testing.assert_array_equal, trained.model.components, state.components)


def test_stopped_it_goes_on_to_the_same_bits(finished, path, command, monkeypatch, tmp_path):
    argv = ("decompose", path, "--run-dir", tmp_path / "run", "--quiet")

    def stops(record):
        if record["step"] == 2:  # a second signal would not wait for a checkpoint
            signal.raise_signal(signal.SIGTERM)

    def train(*args, log, **kwargs):
        return train_apd(*args, log=dataclasses.replace(log, on_record=stops), **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(apd_recipe, "train_apd", train)
        code, _, err = command(*argv)
    assert code == 143
    assert re.search(r"stopped after step \d of 12", err)
    assert not (tmp_path / "run" / "decomposition.safetensors").exists()
    assert command(*argv)[0] == 0
    for name in ("metrics.jsonl", "evaluation.json", "decomposition.safetensors", "report.html"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes(), name


def test_its_page_again(finished, command):
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    assert command("decomposition-report", finished)[0] == 0
    assert (finished / "report.html").read_text() == before
    assert command("decomposition-report", finished, "--components", 1)[0] == 0
    note = r"Component, share of inputs on which it is important:\s*<b>\d</b> [\d.]+ %</p>"
    assert re.search(note, (finished / "report.html").read_text())
    (finished / "report.html").write_text(before)


def test_what_is_refused(finished, path, command, monkeypatch, model, tmp_path):
    def refused(*argv):
        code, _, err = command(*argv, "--quiet")
        assert (code, err.count("\n")) == (2, 1)
        return err

    new = ("decompose", path, "--run-dir", tmp_path / "new")
    err = refused("decompose", finished, "--decomposition.simplicity", "0.1")
    assert "holds a run of another config: decomposition.simplicity: 0.7 -> 0.1" in err
    assert "no matrix matches 'linear3'" in refused(*new, "--decomposition.matrices", "linear3")
    assert "top_k=4.0: it must be above 0 and at most C=3" in refused(*new, "--decomposition.top-k", "4")
    assert "unknown option --decomposition.warm-up" in refused(*new, "--decomposition.warm-up.steps", "3")
    assert "APD decomposes toys" in refused(*new, "--target", model)
    hidden = ("--decomposition.activations", "hiden", "--decomposition.activation-reconstruction", "1")
    assert "hidden" in refused(*new, *hidden)
    assert not (tmp_path / "new").exists()
    spd = tmp_path / "spd.json"
    spd.write_text(configs.dumps(dataclasses.replace(CONFIG, decomposition=DecompositionRunConfig().decomposition)))
    assert "of another config: decomposition.type: " in refused("decompose", spd, "--run-dir", finished)

    other = drawn("5-2", 5)
    monkeypatch.setattr(tms, "tms_target", lambda *_: other)
    assert "was begun with other weights (" in refused("decompose", finished)
    monkeypatch.setattr(tms, "tms_target", drawn)
    result = (finished / "evaluation.json").read_text()
    (finished / "evaluation.json").write_text(json.dumps({"target": "tms:5-2", "source": "", "pgd": {}}))
    code, _, err = command("decomposition-report", finished)
    assert code == 2
    assert "evaluation.json has no relative_faithfulness, losses, error, " in err
    (finished / "evaluation.json").write_text(result)
