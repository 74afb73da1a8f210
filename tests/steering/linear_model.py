"""A model whose target is a known function of the bias: one embedding, one map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Mapped:
    """`target = function(embed[token], *arrays)`, for each token."""

    embed: jax.Array
    arrays: tuple[jax.Array, ...]
    function: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    blocks: tuple = ()

    def __call__(self, tokens, *, mask=None, taps=()):
        site = Site.open(taps, self.blocks)
        x = site("embed", self.embed[tokens])
        return site.close(site("target", self.function(x, *self.arrays)))


def mapped(function, *arrays, d: int, vocab: int = 5):
    embed = jnp.zeros((vocab, d), jnp.float32)
    return Mapped(embed, tuple(jnp.asarray(a, jnp.float32) for a in arrays), function)


def linear(x, J):
    return jnp.einsum("bpd,kd->bpk", x, J, precision="highest")
