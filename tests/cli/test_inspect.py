"""`jax-interp inspect`, and `evaluate` of a dictionary that another program published."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jax_interp.dictionaries import ReLU, save_dictionary
from jax_interp.dictionaries.formats import FORMATS, Files, Format
from jax_interp.dictionaries.forms import Dictionary, init_sae
from jax_interp.dictionaries.releases import releases
from jax_interp.dictionaries.storage import Saved

SAE = init_sae(jax.random.key(0), 16, 32, ReLU())
ADDRESS = "blocks.1.resid_pre"


@pytest.fixture
def native(tmp_path, model) -> Path:
    saved = Saved(SAE, ADDRESS, str(model), notes=("read before the norm",), stated={"l0": 2.0})
    return save_dictionary(tmp_path / "sae", saved)


@pytest.fixture
def nameless(tmp_path, monkeypatch) -> Path:
    """A folder of a format that says neither model nor address."""

    class Nameless(Format):
        name, title = "nameless", "A test"

        @classmethod
        def recognise(cls, files: Files) -> bool:
            return "nameless.safetensors" in files

        @classmethod
        def read(cls, files: Files) -> Saved:
            tensors = files.tensors("nameless.safetensors")
            placed = {name: files.place(name, tensors[name]) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
            return Saved(Dictionary(**placed, activation=ReLU()), None, None)

    monkeypatch.setitem(FORMATS._variants, "Nameless", Nameless)
    (tmp_path / "published").mkdir()
    arrays = {name: np.asarray(getattr(SAE, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    save_file(arrays, tmp_path / "published" / "nameless.safetensors")
    return tmp_path / "published"


def test_what_a_dictionary_is(native, model, command):
    code, out, err = command("inspect", native, "--json")
    assert code == 0, err
    about = json.loads(out)
    assert (about["reads"], about["writes"], about["model"]) == (ADDRESS, ADDRESS, str(model))
    assert (about["features"], about["width read"], about["b_dec subtracted from the input"]) == (32, 16, True)
    assert about["decoder norms"] == "1 to 1, median 1"
    assert (about["notes"], about["stated"], about["findings"]) == (["read before the norm"], {"l0": 2.0}, [])
    code, out, _ = command("inspect", native)
    assert "jax_interp (jax_interp)" in out
    assert "read before the norm" in out


def test_figures_beside_what_the_release_states(native, text, command):
    code, out, err = command("inspect", native, "--text", text, "--sequences", 2, "--context", 32, "--json")
    assert code == 0, err
    about = json.loads(out)
    assert about["measured"]["tokens"] == 2 * 31  # without the first position
    assert about["findings"][0].startswith(f"L0: L0 is {about['measured']['l0']:.1f} on this text")
    assert about["stated"] == {"l0": 2.0}


def test_files_that_name_neither_model_nor_address(nameless, model, text, command):
    code, out, err = command("inspect", nameless)
    assert (code, err) == (0, "")
    assert out.count("not known") == 3
    for name, options, message in [
        ("inspect", ("--model", model), "do not say which value it reads"),
        ("inspect", ("--text", text, "--address", ADDRESS), "do not say which model"),
        ("evaluate", ("--model", model), "do not say which value it reads"),
        ("evaluate", ("--address", ADDRESS), "do not say which model"),
    ]:
        code, _, err = command(name, nameless, *options)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    asked = ("--model", model, "--address", ADDRESS, "--text", text, "--context", 16)
    code, out, err = command("inspect", nameless, *asked, "--sequences", 2, "--json")
    assert code == 0, err
    assert json.loads(out)["measured"]["l0"] > 0
    code, out, err = command("evaluate", nameless, *asked, "--sequences", 8, "--json", nameless / "figures.json")
    assert code == 0, err
    assert f"{ADDRESS} of {model}" in out
    assert sorted(path.name for path in nameless.iterdir()) == ["figures.json", "nameless.safetensors"]


def test_a_release_and_its_ids(command):
    code, out, _ = command("inspect", "gpt2-small-res-jb")
    assert code == 0
    assert "13 dictionaries for gpt2-small" in out
    ids = [line.split()[0] for line in out.splitlines() if "hook" in line]
    assert ids[:3] == ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"]
    code, out, _ = command("inspect", "gemma-scope-2b-pt-res")
    assert "and 296 more: --ids PATTERN lists those that match" in out
    code, out, _ = command("inspect", "gemma-scope-2b-pt-res", "--ids", "layer_5/width_16k/*", "--json")
    assert json.loads(out)["layer_5/width_16k/average_l0_68"] == {"l0": 68.0}
    code, out, _ = command("inspect", "--json")
    assert len(json.loads(out)) == len(releases())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpt2-small-res-jp",), "releases with a like name are gpt2-small-res-jb"),
        (("gpt2-small-res-jb", "blocks.99"), "has no id 'blocks.99'"),
        (("gpt2-small-res-jb", "--ids", "z*"), "no id of gpt2-small-res-jb matches 'z*'"),
        (("nowhere", "--ids", "*"), "--ids is for releases; 'nowhere' is none"),
        (("nowhere", "--format", "x"), "there is no file or folder"),
        (("nowhere", "--sequences", "0"), "--sequences 0 is below 1"),
        (("hf:x",), "is not hf:owner/repository"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, command):
    code, out, err = command("inspect", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
