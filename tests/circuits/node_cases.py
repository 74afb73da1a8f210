"""Small models whose values are cut into units in every basis: heads, neurons, latents, components, positions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.circuits import LogitDifference, make_contrast
from jax_interp.decomposition.components import decompose
from jax_interp.dictionaries.activations import ReLU
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.replacement import replacement
from jax_interp.surgery import Splice, at, edit, replan

PROMPTS, LENGTH, VOCAB = 3, 6, 61


def coder(seed: int, d: int, n: int) -> Dictionary:
    """A dictionary with random weights."""
    a, b = jax.random.split(jax.random.key(seed))
    W_enc, W_dec = jax.random.normal(a, (d, n)) / d**0.5, jax.random.normal(b, (n, d)) / n**0.5
    return Dictionary(W_enc, jnp.zeros(n), W_dec, jnp.zeros(d), ReLU(), centred=False)


def contrast_of(padded: bool = False, metric=None):
    """Random prompts; if padded, the first prompt begins with two tokens of padding."""
    rng = np.random.default_rng(1)
    clean, corrupted = (rng.integers(0, VOCAB, (PROMPTS, LENGTH), np.int32) for _ in range(2))
    mask = np.ones((PROMPTS, LENGTH), bool)
    mask[0, :2] = False
    metric = LogitDifference(jnp.asarray([3, 5, 8]), 7) if metric is None else metric
    return make_contrast(clean, corrupted, metric, mask=mask if padded else None)


def gpt(layers: int = 2):
    return peaky(dataclasses.replace(GPT2_LIKE, n_layers=layers))


def llama(layers: int = 2):
    return peaky(dataclasses.replace(LLAMA_LIKE, n_layers=layers))


def spliced():
    return edit(gpt(), at("blocks.1.resid_post", Splice(coder(0, 32, 20), error=True)))


def transcoded():
    reads, writes = ([f"blocks.{i}.{name}" for i in range(2)] for name in ("ln2.normalized", "mlp_out"))
    return replacement(gpt(), reads, writes, [coder(i, 32, 12) for i in range(2)])


def decomposed():
    return decompose(gpt(), "blocks.*.mlp.up", C=10, key=jax.random.key(0))


BASES = {  # name: (model, addresses, per, padded)
    "heads": (gpt, "blocks.*.attn.z", "head", False),
    "heads by position, padded": (gpt, "blocks.*.attn.z", ("head", "pos"), True),
    "key heads, grouped queries": (llama, "blocks.*.attn.k", ("head", "pos"), False),
    "queries of one layer, unrolled": (lambda: replan(llama(), "*"), "blocks.1.attn.q", "head", False),
    "neurons": (llama, "blocks.*.mlp.post", "feature", True),
    "streams by position": (gpt, ["embed", "blocks.*.resid_post"], "pos", False),
    "outputs of attention and MLP": (gpt, ["blocks.*.attn_out", "blocks.*.mlp_out"], (), False),
    "patterns": (llama, "blocks.1.attn.pattern", ("head", "pos", "key"), True),
    "latents with error nodes": (spliced, "blocks.1.resid_post.latents", "feature", False),
    "latents of transcoders": (transcoded, "blocks.*.ln2.normalized.latents", ("feature", "pos"), False),
    "components": (decomposed, "blocks.*.mlp.up.components", "component", True),
}
QUICK = ("heads by position, padded", "latents with error nodes", "latents of transcoders", "components", "patterns")
SOME_BASES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in BASES]
"""The names of all bases. Those that differ least from another one are marked as slow."""
