"""A tiny toy model of superposition that keeps the surgery contract, and an exact pentagon."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    weight: jax.Array
    bias: Any = None

    def __call__(self, x, site):
        y = x @ self.weight
        return y if self.bias is None else y + self.bias[None]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiny:
    """`relu(x linear1 linear2 + b)`; linear2 is a matrix of its own, equal to the transpose where it is tied."""

    linear1: Linear
    linear2: Linear

    def __call__(self, x, *, taps=()):
        site = Site.open(taps)
        h = site("hidden", self.linear1(x, site / "linear1"), "batch feature")
        return site.close(site("out", jax.nn.relu(self.linear2(h, site / "linear2")), "batch feature"))


def tiny(n=5, m=2, seed=0):
    rng = np.random.default_rng(seed)
    W = jnp.asarray(rng.standard_normal((n, m)), jnp.float32)
    return Tiny(Linear(W), Linear(W.T, jnp.asarray(0.1 * rng.standard_normal(n), jnp.float32)))


def pentagon(norm=1.134, bias=-0.245):
    """What training finds for five features in two dimensions at p = .05: a regular pentagon (specs' measured norm and
    bias)."""
    angle = 2 * np.pi * np.arange(5) / 5
    W = jnp.asarray(norm * np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)
    return Tiny(Linear(W), Linear(W.T, jnp.full(5, bias, jnp.float32)))


def sparse(key, batch=256, n=5, p=0.05):
    """Bernoulli(p) · U[0, 1]."""
    on, value = jax.random.split(key)
    return jnp.where(jax.random.bernoulli(on, p, (batch, n)), jax.random.uniform(value, (batch, n)), 0.0)


TIED = (("linear1", "linear2"),)
