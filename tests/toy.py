"""A small language model that keeps the contract: embedding, residual blocks that look one token back, unembedding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site, run_blocks


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
    W: jax.Array

    def __call__(self, x, site):
        x = site("resid_pre", x)
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return site("resid_post", x + jnp.tanh((x + before) @ self.W))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy:
    E: jax.Array
    blocks: list[Block]
    U: jax.Array

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps, self.blocks)
        x = run_blocks(self.blocks, site("embed", self.E[tokens]), site)
        return site.close(site("logits", x @ self.U, "batch pos vocab"))


def toy(seed=0, d=16, vocab=40, layers=3):
    keys = jax.random.split(jax.random.key(seed), layers + 2)
    blocks = [Block(jax.random.normal(key, (d, d)) / d**0.5) for key in keys[2:]]
    return Toy(jax.random.normal(keys[0], (vocab, d)), blocks, jax.random.normal(keys[1], (d, vocab)) / d**0.5)


def batch_at(i, seed=7, sequences=8, length=16, vocab=40):
    """Tokens with BOS (0) first and some padding (1) at the end; keep excludes both."""
    key = jax.random.fold_in(jax.random.key(seed), i)
    tokens = jax.random.randint(key, (sequences, length), 2, vocab).at[:, 0].set(0)
    ends = jax.random.randint(jax.random.fold_in(key, 1), (sequences,), length - 3, length + 1)
    tokens = jnp.where(jnp.arange(length)[None, :] < ends[:, None], tokens, 1)
    return tokens, tokens > 1
