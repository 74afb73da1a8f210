"""Inference-time optimisation: the best sparse code for a decoder, with no encoder (Rajamanoharan et al. 2024, app. A).

    minimise ‖x - b_dec - a W_dec‖²   with a >= 0 and at most k nonzero entries in a

The method is gradient pursuit (Blumensath & Davies 2008). Each of k steps adds the atom that correlates most with the
residual, takes one exact line-search step along the gradient for all chosen atoms, and clips at 0. One pass gives the
errors for 1, 2, … k latents. The amortisation gap is the error of an encoder minus this error.

    Pursuit(sae.W_dec, sae.b_dec, k=32)        a dictionary that can be spliced in and evaluated
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.sparse_coder import SparseCoder


@register_dataclass
@dataclasses.dataclass(frozen=True)
class PursuitCode:
    """The code that gradient pursuit found: at most k latents for each row."""

    values: Float[Array, "row k"]
    indices: Int[Array, "row k"]
    """The atom of each value. An unused place has value 0 and index 0."""
    error: Float[Array, "step row"]
    """‖residual‖² after each step. Up to step k, `error[i]` is the error of a code with at most i + 1 atoms."""


@partial(jax.jit, static_argnames=("k", "extra_steps"))
def gradient_pursuit(
    x: Float[Array, "row d"], W_dec: Float[Array, "feature d"], k: int, extra_steps: int = 0
) -> PursuitCode:
    """Find a nonnegative sparse code of each row. The cost is one [row, feature] product for each step.

    Args:
      x: rows, with the decoder's bias subtracted.
      W_dec: the atoms. They may have any norm.
      k: how many atoms a row can have.
      extra_steps: more gradient steps on the chosen atoms. They bring the values closer to the least-squares solution.
    """
    rows = x.shape[0]
    place = jnp.arange(k)[None, :]

    def step(state, i):
        values, indices, used, residual = state
        products = residual @ W_dec.T
        best = jnp.argmax(products, axis=1).astype(jnp.int32)
        # After k steps no atom is added. An atom that is already chosen is not added again.
        new = (i < k) & ~jnp.any(used & (indices == best[:, None]), axis=1)
        here = new[:, None] & (place == i)
        indices, used = jnp.where(here, best[:, None], indices), used | here
        g = jnp.where(used, jnp.take_along_axis(products, indices, axis=1), jnp.zeros_like(values))
        atoms = W_dec[indices]
        c = jnp.einsum("nk,nkd->nd", g, atoms)
        square = jnp.sum(c * c, axis=1)
        length = jnp.sum(c * residual, axis=1) / jnp.where(square > 0, square, jnp.ones_like(square))
        values = jnp.maximum(values + length[:, None] * g, 0)
        residual = x - jnp.einsum("nk,nkd->nd", values, atoms)
        return (values, indices, used, residual), jnp.sum(residual * residual, axis=1)

    start = (jnp.zeros((rows, k), x.dtype), jnp.zeros((rows, k), jnp.int32), jnp.zeros((rows, k), bool), x)
    (values, indices, _, _), error = jax.lax.scan(step, start, jnp.arange(k + extra_steps))
    return PursuitCode(values, indices, error)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Pursuit(SparseCoder):
    """A dictionary whose encoder is gradient pursuit over a given decoder."""

    W_dec: Float[Array, "feature d"]
    b_dec: Float[Array, " d"]
    k: int = dataclasses.field(metadata={"static": True})
    extra_steps: int = dataclasses.field(default=0, metadata={"static": True})

    def encode(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch feature"]:
        flat = x.reshape(-1, x.shape[-1]).astype(self.W_dec.dtype)
        code = gradient_pursuit(flat - self.b_dec[None, :], self.W_dec, self.k, self.extra_steps)
        z = jnp.zeros((flat.shape[0], self.W_dec.shape[0]), code.values.dtype)
        z = z.at[jnp.arange(flat.shape[0])[:, None], code.indices].add(code.values)
        return z.reshape(*x.shape[:-1], -1)

    def directions(self) -> Float[Array, "feature d"]:
        return self.W_dec

    def decode(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d"]:
        x_hat = z.astype(self.W_dec.dtype) @ self.W_dec
        return x_hat + jnp.broadcast_to(self.b_dec, x_hat.shape)
