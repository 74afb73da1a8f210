"""The code of docs/training-dictionaries.md runs as it stands, block after block."""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pages
import pytest

from jax_interp.dictionaries import variants
from jax_interp.dictionaries.losses import (
    L0,
    L1,
    AnnealedLp,
    AuxK,
    FrozenDecoder,
    GateL1,
    Matryoshka,
    PreActivation,
    Tanh,
)

PAGE = Path(__file__).parents[2] / "docs" / "training-dictionaries.md"


@pytest.mark.slow
def test_the_page_runs():
    names = pages.run("training-dictionaries.md")
    with pages.as_a_reader():
        x = jnp.ones((3, 256))
        assert names["sae"].encode(x).shape == (3, 512)
        assert ((np.asarray(names["sae"].encode(x)) > 0).sum(axis=1) <= 16).all()
    assert names["sae"].W_dec.shape == (512, 256)
    np.testing.assert_allclose(np.linalg.norm(names["sae"].W_dec, axis=1), 1.0, rtol=1e-4)
    assert {names["member"].address} <= {"blocks.1.resid_post", "blocks.2.resid_post"}
    assert names["dictionary"].W_dec.shape == (256, 256)
    assert [record["step"] for record in names["log"] if "eval.fvu" in record] == [2, 4]
    assert names["tokens"].shape == names["keep"].shape == (8, 64)
    assert names["functional"].W_dec.shape == (128, 256)
    assert not np.array_equal(names["regular"].embed.weight[...], names["model"].embed.weight[...])


ONE, MANY = "a", ("a", "b")
ADDRESSES = {"transcoder": ("a", "b"), "crosscoder": (MANY,), "batch_topk_crosscoder": (MANY,),
             "cross_layer": (MANY, MANY), "batch_topk_cross_layer": (MANY, MANY)}  # fmt: skip
IN_WORDS = {L1: "L1", L0: "L0", AnnealedLp: "Lp", Tanh: "tanh", PreActivation: "pre-activation",
            GateL1: "L1 on the gate", FrozenDecoder: "frozen-decoder", Matryoshka: "nested", AuxK: "AuxK"}  # fmt: skip


def test_the_table_has_every_variant_with_its_activation_and_its_terms():
    made = {
        name
        for name, value in vars(variants).items()
        if getattr(value, "__module__", "") == variants.__name__ and callable(value)
    }
    rows = re.findall(r"^\| `([a-z_]+)` \| (\w+).*? \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    assert {name for name, *_ in rows} == made
    for name, activation, beside in rows:
        config = getattr(variants, name)(*ADDRESSES.get(name, (ONE,)))
        assert activation == type(config.activation).__name__, name
        has = {IN_WORDS[type(term)] for term in config.loss if type(term) in IN_WORDS}
        said = {words for words in IN_WORDS.values() if words in beside}
        assert has <= said, name
        resampled = getattr(config, "resampling", None) is not None
        assert ("AuxK" in said, "resampled" in beside) == ("AuxK" in has, resampled), name
