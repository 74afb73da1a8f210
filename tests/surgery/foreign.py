"""Two models that are not ours and keep the contract: a plain-JAX MLP, and a stack of recurrent layers."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jax import Array

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site, Stack, run_blocks


@register_dataclass
@dataclasses.dataclass(frozen=True)
class PlainMLP:
    """No Flax, no blocks, no positions: weights and biases in lists."""

    weights: list[Array]
    biases: list[Array]

    def __call__(self, x, taps=()):
        site = Site.open(taps)
        for i, (w, b) in enumerate(zip(self.weights[:-1], self.biases[:-1], strict=True)):
            pre = site(f"hidden{i}.pre", x @ w + b[None], "batch feature")
            x = site(f"hidden{i}.post", jnp.tanh(pre), "batch feature")
        return site.close(site("out", x @ self.weights[-1] + self.biases[-1][None], "batch feature"))

    @classmethod
    def of(cls, sizes, key):
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = list(itertools.pairwise(sizes))
        return cls([jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, shapes, strict=True)],
                   [jnp.linspace(-1.0, 1.0, n) for n in sizes[1:]])  # fmt: skip


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Recurrent:
    """One layer: a recurrence over time by `lax.scan`, its states named for all times at once."""

    w_in: Array
    w_state: Array

    def __call__(self, x, site):
        x = site("input", x, "batch time feature")

        def step(state, x_t):
            state = jnp.tanh(x_t @ self.w_in + state @ self.w_state)
            return state, state

        _, states = jax.lax.scan(step, jnp.zeros((x.shape[0], x.shape[2])), jnp.swapaxes(x, 0, 1))
        return x + site("state", jnp.swapaxes(states, 0, 1), "batch time feature")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class RecurrentNet:
    """A stack of recurrent layers: its blocks are a plain list of segments, in a plain dataclass."""

    blocks: list

    def __call__(self, x, taps=(), remat=None):
        site = Site.open(taps, self.blocks)
        x = run_blocks(self.blocks, site("embed", x, "batch time feature"), site, remat=remat)
        return site.close(site("out", x, "batch time feature"))

    @classmethod
    def of(cls, depth, width, key):
        def layer(key):
            a, b = jax.random.split(key)
            return Recurrent(jax.random.normal(a, (width, width)) / 4, jax.random.normal(b, (width, width)) / 4)

        return cls([Stack(jax.vmap(layer)(jax.random.split(key, depth)))])
