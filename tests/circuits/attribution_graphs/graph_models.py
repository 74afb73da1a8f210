"""Small decoders with random transcoders, for tests of attribution graphs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.dictionaries.activations import Jump, JumpReLU
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.replacement import replacement
from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.surgery import replan

LAYERS, D, M, VOCAB = 3, 16, 24, 40
TOKENS = np.array([3, 17, 5, 30, 5, 11, 2])
CONFIG = Config(n_layers=LAYERS, d_model=D, n_heads=4, n_kv_heads=2, d_mlp=32, vocab_size=VOCAB, n_ctx=32)
READS = tuple(f"blocks.{i}.ln2.normalized" for i in range(LAYERS))
WRITES = tuple(f"blocks.{i}.mlp_out" for i in range(LAYERS))


def dictionary(activation, *, window=1, skip=False, dtype=jnp.float32, seed=2):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(0.3 * rng.standard_normal(shape), dtype)
    own = Jump(normal(M) - 1.2) if isinstance(activation, JumpReLU) else activation
    own = jax.tree.map(lambda leaf: leaf.astype(dtype), own)
    sources = [
        Source(normal(D, M), normal(M), normal(M, min(window, LAYERS - i), D), own, normal(D, D) if skip else None)
        for i in range(LAYERS)
    ]
    return CrossLayer(tuple(sources), normal(LAYERS, D))


def local_model(activation, *, window=1, skip=False, dtype=jnp.float32, config=None, layout=()):
    """A decoder of three layers, whose weights are large enough for attention patterns that differ by head."""
    model = init(dataclasses.replace(CONFIG, **(config or {})), jax.random.key(0))
    model = jax.tree.map(lambda w: (6 * w if w.ndim > 2 or w.shape == (VOCAB, D) else w).astype(dtype), model)
    return replacement(
        replan(model, layout), READS, WRITES, dictionary(activation, window=window, skip=skip, dtype=dtype)
    )
