"""What is printed of a model, of surgery and of its results fits a screen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jax_interp import Add, Each, Replace, Splice, at, call, edit, read, replan
from jax_interp.decomposition import decompose
from jax_interp.dictionaries.activations import TopK
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.models import Config, init
from jax_interp.surgery import AddressError, Resample

DEEP = init(Config(n_layers=30, d_model=64, n_heads=4, d_mlp=128, vocab_size=97, n_ctx=64), jax.random.key(0))
SAE = Dictionary(jnp.ones((64, 256)), jnp.ones(256), jnp.ones((256, 64)), jnp.ones(64), TopK(4))
DONORS = at("blocks.*.resid_post", Each(Replace(jnp.ones((30, 2, 500, 64)))))
PRINTED = {
    "model": (DEEP, "Decoder(Config(n_layers=30, "),
    "unrolled model": (replan(DEEP, "*"), "1,238,912 parameters, float32)"),
    "stack": (DEEP.blocks[0], "Stack("),
    "edited model": (edit(read(DEEP, "blocks.*.resid_post"), DONORS), "value=float32[30, 2, 500, 64]"),
    "many edits": (edit(DEEP, [at(f"blocks.{i}.resid_post", Add(jnp.ones(64))) for i in range(30)]), "… 22 more"),
    "edit": (at("blocks.1.resid_post", Add(jnp.ones(64), 4.0), pos=-1), "vector=float32[64], coefficient=4"),
    "dictionary": (SAE, "Dictionary(W_enc=float32[64, 256]"),
    "spliced model": (edit(DEEP, at("blocks.2.resid_post", Splice(SAE))), "activation=TopK(k=4)"),
    "decomposed model": (decompose(DEEP, "blocks.*.mlp", C=4, key=jax.random.key(0)), "V=float32[30, 64, 4]"),
}


@pytest.mark.parametrize("name", PRINTED)
def test_it_fits_a_screen_and_says_what_it_is(name):
    value, says = PRINTED[name]
    assert says in repr(value)
    assert len(repr(value)) < 2000


def test_readings():
    acts = call(read(DEEP, [f"blocks.{i}.resid_post" for i in range(30)]), jnp.ones((1, 4), jnp.int32))[1]
    assert "blocks.1.resid_post: float32[1, 4, 64]" in repr(acts)
    assert len(repr(acts).splitlines()) < 25
    with pytest.raises(AddressError, match="looked up by address, got 0"):
        acts[0]


def test_inside_a_traced_function():
    printed = []
    jax.jit(lambda x: printed.append(repr(at("embed", Resample(x)))) or x)(jnp.float32(1.0))
    assert "float32[]" in printed[0]


def test_the_outermost_reading_decides_about_the_output():
    tokens = jnp.ones((1, 4), jnp.int32)
    inner = read(DEEP, "embed", output=False)
    logits, acts = call(read(inner, "blocks.1.resid_post"), tokens)
    assert logits.shape == (1, 4, 97)
    assert set(acts) == {"embed", "blocks.1.resid_post"}
    assert set(call(read(read(DEEP, "embed"), "blocks.1.resid_post", output=False), tokens)) == set(acts)
