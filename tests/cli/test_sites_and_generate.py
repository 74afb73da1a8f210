"""`sites` lists what there is; `generate` writes what `generate` writes, and edits act on it."""

from __future__ import annotations

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.models import generate, load
from jax_interp.recipes.sites import collapse_layers
from jax_interp.surgery import Add, at, survey
from jax_interp.surgery.saving import save_edits
from jax_interp.surgery.trace import NamedValue


def test_the_table(command, model):
    code, out, err = command("sites", model, "--pos", 5)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "1 × 5 × 16" in rows["blocks.*.resid_post"]
    assert "batch head pos key" in rows["blocks.*.attn.pattern"]
    assert "1 × 5 × 300" in rows["logits"]
    assert "float32" in rows["embed"]
    assert not any(name.startswith(("blocks.0", "blocks.1")) for name in rows), "identical layers are one row"


def test_chosen_addresses_and_json(command, model):
    code, out, _ = command("sites", model, "blocks.1.attn.hook_z", "logits", "--json")
    assert code == 0
    entries = json.loads(out)
    assert list(entries) == ["blocks.1.attn.z", "logits"]
    assert entries["blocks.1.attn.z"] == {
        "axes": ["batch", "pos", "head", "d_head"],
        "shape": [1, 16, 2, 8],
        "dtype": "float32",
    }


def test_json_lists_what_survey_finds(command, model):
    loaded, _ = load(model)
    found = survey(loaded)(jnp.zeros((1, 16), jnp.int32))
    assert list(json.loads(command("sites", model, "--json")[1])) == list(found)


def test_layers_that_differ_are_apart():
    wide, narrow = (NamedValue((1, 4, d), jnp.float32, ("batch", "pos", "d")) for d in (8, 6))
    found = {f"blocks.{i}.mlp.post": narrow if i == 2 else wide for i in range(5)} | {"logits": wide}
    assert [name for name, _ in collapse_layers(found, 5)] == [
        "blocks.0:2.mlp.post",
        "blocks.3:5.mlp.post",
        "blocks.2.mlp.post",
        "logits",
    ]


def test_greedy_text_is_what_generate_writes(command, model):
    code, out, err = command("generate", "def push(", "--model", model, "--max-tokens", 6)
    assert (code, err) == (0, "")
    loaded, tokenizer = load(model)
    ids = jnp.asarray([tokenizer.encode("def push(", bos=True)], jnp.int32)
    new = np.asarray(generate(loaded, ids, 6))[0].tolist()
    new = new[: new.index(0)] if 0 in new else new
    assert out == f"def push({tokenizer.decode(new)}\n"


def test_a_seed_is_a_text(command, model):
    draw = ("generate", "def", "--model", model, "--max-tokens", 8, "--temperature", 1, "--only-new")
    first = command(*draw, "--seed", 1)[1]
    assert command(*draw, "--seed", 1)[1] == first
    assert command(*draw, "--seed", 2)[1] != first


@pytest.mark.slow
def test_streaming_prints_what_one_program_writes(command, model):
    for options in ((), ("--temperature", 1, "--min-p", 0.001, "--repetition-penalty", 1.3, "--stop", "er", "se")):
        asked = ("generate", "def push(", "--model", model, "--max-tokens", 12, *options)
        assert command(*asked) == command(*asked, "--no-stream")


def test_the_prompt_may_come_from_stdin(command, model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("def push("))
    assert command("generate", "--model", model, "--max-tokens", 6) == command(
        "generate", "def push(", "--model", model, "--max-tokens", 6
    )


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_prompt_that_is_no_text(command, model, monkeypatch, errors):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"d\xe9f push("), encoding="utf-8", errors=errors))
    code, out, err = command("generate", "-", "--model", model)
    assert (code, out) == (2, "")
    assert "what stdin gives is not UTF-8 text" in err
    code, _, err = command("generate", "d\udce9f", "--model", model)
    assert code == 2
    assert "the prompt is not UTF-8 text" in err


def test_saved_edits_act(command, model, tmp_path):
    _, tokenizer = load(model)
    wanted = tokenizer.id_of("item")
    push = Add(jnp.zeros(tokenizer.vocab_size).at[wanted].set(1e3))
    path = save_edits(tmp_path / "edits.safetensors", at("logits", push))
    code, out, _ = command("generate", "def", "--model", model, "--max-tokens", 3, "--edits", path, "--only-new")
    assert (code, out) == (0, "itemitemitem\n")
