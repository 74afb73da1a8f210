"""The edits: small callable pytrees, value -> value. Any callable pytree of your own is one too.

The fields are data: a vector, a coefficient, a donor can be swept, differentiated and sharded. A result is cast to
the dtype of the value that it replaces. Shapes below are those of one layer's value; `Each` adds a layer axis.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from jax_interp.surgery.taps import static


@typing.dataclass_transform(frozen_default=True)
def _edit(cls: type) -> Any:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


def _like(value: Any, x: Array) -> Array:
    """`value` in the dtype and shape of `x`, broadcast from the right."""
    return jnp.broadcast_to(jnp.asarray(value).astype(x.dtype), x.shape)


@_edit
class Zero:
    """Zero ablation."""

    def __call__(self, x: Array) -> Array:
        return jnp.zeros_like(x)


@_edit
class Mean:
    """Mean ablation: `mean` (over a dataset; anything that broadcasts to the value) in place of the value.

    Without `mean`, the mean over the batch at hand, position by position.
    """

    mean: Shaped[Array, "..."] | None = None

    def __call__(self, x: Array) -> Array:
        return _like(jnp.mean(x, axis=0) if self.mean is None else self.mean, x)


@_edit
class Resample:
    """Resample ablation: each example gets the value of the example `donor[i]` of the same batch."""

    donor: Int[Array, "batch"]

    def __call__(self, x: Array) -> Array:
        return jnp.take(x, jnp.asarray(self.donor), axis=0)


@_edit
class Replace:
    """Activation patching: `value`, from another run say, in place of the value. Gradients flow into it."""

    value: Shaped[Array, "..."]

    def __call__(self, x: Array) -> Array:
        return _like(self.value, x)


@_edit
class Freeze:
    """`Replace` by a constant: the clean run's value, through which no gradient flows (frozen attention, say)."""

    value: Shaped[Array, "..."]

    def __call__(self, x: Array) -> Array:
        return jax.lax.stop_gradient(_like(self.value, x))


@_edit
class Add:
    """Steering: value + coefficient · vector."""

    vector: Float[Array, "..."]
    coefficient: Float[Array, "..."] | float = 1.0

    def __call__(self, x: Array) -> Array:
        return x + _like(self.coefficient, x) * _like(self.vector, x)


@_edit
class Scale:
    """factor · value."""

    factor: Float[Array, "..."] | float

    def __call__(self, x: Array) -> Array:
        return x * _like(self.factor, x)


@_edit
class ProjectOut:
    """Directional ablation: the value without its component in the span of `directions` (need not be orthonormal).

    A direction of norm zero removes nothing. Several directions are orthonormalised by QR and must be independent.
    """

    directions: Float[Array, "d"] | Float[Array, "k d"]

    def __call__(self, x: Array) -> Array:
        v = jnp.asarray(self.directions)
        if v.dtype != jnp.float64:
            v = v.astype(jnp.float32)  # float16 has no room for the square of a long one
        if v.ndim == 1:
            norm = jnp.linalg.norm(v)
            unit = (v / jnp.where(norm == 0, jnp.ones_like(norm), norm)).astype(x.dtype)
            return x - jnp.einsum("...d,d->...", x, unit)[..., None] * _like(unit, x)
        basis = jnp.linalg.qr(v.T)[0].astype(x.dtype)
        return x - jnp.einsum("...d,dk,ek->...e", x, basis, basis)


@_edit
class Noise:
    """value + std · standard normal noise, drawn from `key`: the same key and shape give the same noise. While
    generating, every new token is a value of the same shape, so all of them get one draw."""

    key: Key[Array, ""]
    std: Float[Array, "..."] | float = 1.0

    def __call__(self, x: Array) -> Array:
        return x + _like(self.std, x) * jax.random.normal(self.key, x.shape, x.dtype)


@_edit
class Clamp:
    """The value limited to [low, high]. `Clamp(c, c)` sets it to c: a feature held at a strength."""

    low: Float[Array, "..."] | float
    high: Float[Array, "..."] | float

    def __call__(self, x: Array) -> Array:
        return jnp.minimum(jnp.maximum(x, _like(self.low, x)), _like(self.high, x))


@_edit
class Splice:
    """A dictionary's reconstruction in place of the value; its latents are a value of their own, `….latents`.

        spliced = edit(model, at("blocks.3.resid_post", Splice(sae)))
        edit(spliced, at("blocks.3.resid_post.latents", Clamp(5.0, 5.0), feature=17))

    With `error=True` the reconstruction error is added back, x + decode(edited latents) - decode(latents), so that only
    edits of the latents change anything. The error is a constant to gradients, as in SAELens's `use_error_term`:
    d output / d x goes through the dictionary.

    A dictionary of all heads together reads the last two axes of a value per head as one; it may decode to that width.
    """

    dictionary: Any
    error: bool = static(default=False)

    scoped = True

    def __call__(self, x: Array, site: Any) -> Array:
        latents = self.dictionary.encode(x)
        edited = site("latents", latents, " ".join((*site.axes[: latents.ndim - 1], "feature")))
        decode = lambda z: _as_wide_as(x, self.dictionary.decode(z))
        x_hat = decode(edited)
        if not self.error:
            return x_hat
        x_hat, clean = x_hat.astype(x.dtype), decode(latents).astype(x.dtype)
        return _value_with_gradient_of(x + (x_hat - clean), x_hat)  # x to the bit where no latent was edited


def _as_wide_as(x: Array, x_hat: Array) -> Array:
    """`x_hat` with its last axis cut into heads as `x` has them, where only that differs."""
    return x_hat.reshape(x.shape) if x_hat.ndim == x.ndim - 1 and x_hat.size == x.size else x_hat


@jax.custom_jvp
def _value_with_gradient_of(value: Array, proxy: Array) -> Array:
    return value


@_value_with_gradient_of.defjvp
def _(primals, tangents):
    return primals[0], tangents[1]


@_edit
class Rotate:
    """Distributed alignment search: swap the subspace spanned by `basis` with the donor's (Geiger et al. 2023).

    x + ((donor - x) R) Rᵀ with `basis` R of orthonormal columns; train it through a parametrisation that keeps it so
    (`jnp.linalg.qr(W)[0]`).
    """

    basis: Float[Array, "d k"]
    donor: Float[Array, "..."]

    def __call__(self, x: Array) -> Array:
        basis = jnp.asarray(self.basis).astype(x.dtype)
        return x + jnp.einsum("...d,dk,ek->...e", _like(self.donor, x) - x, basis, basis)


EDITS = (Zero, Mean, Resample, Replace, Freeze, Add, Scale, ProjectOut, Noise, Clamp, Splice, Rotate)
