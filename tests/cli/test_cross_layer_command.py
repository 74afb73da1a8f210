"""train-dictionary and evaluate of a cross-layer transcoder: the same commands, the same laws."""

from __future__ import annotations

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.data.text import Text
from jax_interp.dictionaries import Adam, variants
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.loading import load_dictionary
from jax_interp.dictionaries.training.sweep import Sweep
from jax_interp.recipes.dictionary import DictionaryRunConfig

READS = ("blocks.0.ln2.normalized", "blocks.1.ln2.normalized")
WRITES = ("blocks.0.mlp_out", "blocks.1.mlp_out")


@pytest.fixture(scope="module")
def clt_config(run_config) -> DictionaryRunConfig:
    small = {"k": 4, "n_features": 32, "steps": 12, "optimizer": Adam(warmup=2), "buffer": 256, "dead_after": 400}
    return dataclasses.replace(run_config, dictionary=variants.batch_topk_cross_layer(READS, WRITES, **small))


@pytest.fixture(scope="module")
def clt_json(clt_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "clt.json"
    path.write_text(configs.dumps(clt_config))
    return path


@pytest.fixture(scope="module")
def trained(clt_json, tmp_path_factory):
    from jax_interp.cli.main import main

    directory = tmp_path_factory.mktemp("runs") / "clt"
    assert main(["train-dictionary", str(clt_json), "--run-dir", str(directory), "--quiet"]) == 0
    return directory


def test_what_a_run_leaves(trained):
    saved = load_dictionary(trained / "dictionary")
    assert (saved.address, saved.writes) == (READS, WRITES)
    assert isinstance(saved.dictionary, CrossLayer)
    assert [source.W_dec.shape for source in saved.dictionary.sources] == [(32, 2, 16), (32, 1, 16)]
    figures = json.loads((trained / "evaluation.json").read_text())
    layers = figures["layers"]
    assert [(one["reads"], one["writes"]) for one in layers] == list(zip(READS, WRITES))
    assert [one["fvu"] for one in layers] == list(figures["fvu_by_value"].values())
    assert sum(one["l0"] for one in layers) == pytest.approx(figures["reconstruction"]["l0"])
    assert sum(one["dead"] for one in layers) == figures["density"]["dead"]
    replaced = figures["replacement"]
    for name in ("cross_entropy", "kl", "recovered_mean", "recovered_zero", "kl_score_mean"):
        assert name in replaced["undefined"] or np.isfinite(replaced[name])
    page = (trained / "report.html").read_text()
    assert page.count("<svg") == 4
    for said in ("2 sources of 32 features", "blocks.0,1.ln2.normalized to blocks.0,1.mlp_out", "replacement model"):
        assert said in page


def test_evaluate_gives_the_figures_of_the_run(trained, command, tmp_path):
    code, out, _ = command("evaluate", trained, "--json", tmp_path / "again.json")
    assert code == 0
    assert "recovered, replacement" in out
    assert "blocks.1.ln2.normalized   blocks.1.mlp_out" in out
    again = read_json(tmp_path / "again.json")
    expected = read_json(trained / "evaluation.json")
    assert {name: again[name] for name in expected} == expected


def test_a_model_of_another_width_is_refused(trained, model, command, tmp_path):
    from jax_interp.data.tokenizer import train_bpe
    from jax_interp.models import Config, init, save

    tokenizer = train_bpe(["def f(): pass\n" * 20], 300)
    config = Config(n_layers=2, d_model=8, n_heads=2, d_mlp=16, vocab_size=tokenizer.vocab_size, n_ctx=64)
    other = save(init(config, jax.random.key(0)), tmp_path / "other", tokenizer=tokenizer)
    code, _, err = command("evaluate", trained, "--model", other, "--json", tmp_path / "x.json")
    assert code == 2
    assert "this dictionary reads values of width 16 and writes 16; those of" in err
    assert f"have width 8: it was trained on {model}" in err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
def test_stopped_it_goes_on_to_the_same_bits(trained, clt_json, command, monkeypatch, tmp_path):
    whole, asked = Text.training_batches, []

    def stops(*args):
        batch_at = whole(*args)

        def counted(i):
            asked.append(i)
            if len(asked) > 10:  # the buffer takes four
                signal.raise_signal(signal.SIGTERM)
            return batch_at(i)

        return counted

    argv = ("train-dictionary", clt_json, "--run-dir", tmp_path / "run", "--quiet")
    with monkeypatch.context() as patched:
        patched.setattr(Text, "training_batches", stops)
        code, _, err = command(*argv)
    assert code == 143
    assert "run the same command again to go on from there" in err
    assert not (tmp_path / "run" / "dictionary").exists()
    assert command(*argv)[0] == 0
    for name in ("metrics.jsonl", "evaluation.json", "dictionary/dictionary.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes(), name


WRONG = {
    "one target less": (["--dictionary.writes", WRITES[0]], "2 values are read and 1 written"),
    "the layers in another order": (
        ["--dictionary.writes", *WRITES[::-1]],
        "reads and writes in the order of the layers",
    ),
    "other widths": (["--dictionary.writes", WRITES[0], "blocks.1.mlp.post"], "must have one width"),
    "several values in one": (["--dictionary.address", "blocks.*.ln2.normalized", READS[1]], "one vector per token"),
    "no such value": (["--dictionary.writes", WRITES[0], "blocks.1.mlp_uot"], "Did you mean blocks.*.mlp_out"),
    "a window of nothing": (["--dictionary.window", "0"], "window=0: must be at least 1"),
    "centred": (["--dictionary.centred"], "unknown option --dictionary.centred"),
    "more latents than features": (["--dictionary.activation.k", "33"], "k must be from 1 to n_features"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(case, clt_json, command, tmp_path):
    options, expected = WRONG[case]
    code, out, err = command("train-dictionary", clt_json, "--run-dir", tmp_path / "run", *options)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_no_grid_of_them(clt_config):
    with pytest.raises(UserError, match="leave it out for a cross-layer one"):
        dataclasses.replace(clt_config, sweep=Sweep(k=(2, 4)))
