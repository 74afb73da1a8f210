"""The built-in edits: small callable pytrees, value -> value. Your own callable pytrees are edits too.

The fields of an edit are data. They can be swept, differentiated and sharded, and a new value does not compile again.
The result is cast to the dtype of the edited value. The shapes below are for one layer; in `Each(edit)` the fields have
a leading layer axis. Scalars and smaller arrays are broadcast to the value from the right, as in NumPy.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key, Shaped

from jax_interp.surgery.contract import Dictionary, ScopedEdit
from jax_interp.surgery.site import Site
from jax_interp.surgery.taps import static

EDITS: list[type] = []
"""The built-in edits, which `load_edits` can make from a file."""


@typing.dataclass_transform(frozen_default=True)
def _edit(cls: type) -> Any:
    """Class decorator: a frozen dataclass that is a pytree, added to `EDITS`."""
    registered = jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))
    EDITS.append(registered)
    return registered


def _like(value: ArrayLike, x: Array) -> Array:
    """`value` in the dtype and shape of `x`, broadcast from the right."""
    return jnp.broadcast_to(jnp.asarray(value).astype(x.dtype), x.shape)


@_edit
class Zero:
    """Zero ablation: replace the value by zeros.

    Example:
        edit(model, at("blocks.1.attn.z", Zero(), head=3))
    """

    def __call__(self, x: Array) -> Array:
        return jnp.zeros_like(x)


@_edit
class Mean:
    """Mean ablation: replace the value by a mean.

    Args:
      mean: the mean over a dataset, broadcast to the value. None: the mean over the batch of this call, separately for
        each position.
    """

    mean: Shaped[Array, "..."] | None = None

    def __call__(self, x: Array) -> Array:
        return _like(jnp.mean(x, axis=0) if self.mean is None else self.mean, x)


@_edit
class Resample:
    """Resample ablation: each example of a batch gets the value of another example of the batch.

    Args:
      donor: example `i` gets the value of example `donor[i]`.
    """

    donor: Int[Array, "batch"]

    def __call__(self, x: Array) -> Array:
        return jnp.take(x, jnp.asarray(self.donor), axis=0)


@_edit
class Replace:
    """Activation patching: replace the value by another one. Gradients flow into the new value.

    Args:
      value: the new value, from another run for example.

    Example:
        _, acts = call(read(model, "blocks.2.resid_post"), clean)
        patched = edit(model, at("blocks.2.resid_post", Replace(acts["blocks.2.resid_post"]), pos=5))
    """

    value: Shaped[Array, "..."]

    def __call__(self, x: Array) -> Array:
        return _like(self.value, x)


@_edit
class Freeze:
    """`Replace` without a gradient into the new value. Use it to freeze attention patterns or norm scales.

    Args:
      value: the new value, from a clean run for example.
    """

    value: Shaped[Array, "..."]

    def __call__(self, x: Array) -> Array:
        return jax.lax.stop_gradient(_like(self.value, x))


@_edit
class Add:
    """Steering: value + coefficient * vector.

    Args:
      vector: the steering vector, broadcast to the value.
      coefficient: the factor of the vector.

    Example:
        edit(model, at("blocks.2.resid_post", Add(vector, 4.0), pos=-1))
    """

    vector: Float[Array, "..."]
    coefficient: Float[Array, "..."] | float = 1.0

    def __call__(self, x: Array) -> Array:
        return x + _like(self.coefficient, x) * _like(self.vector, x)


@_edit
class Scale:
    """factor * value.

    Args:
      factor: a number, or an array that is broadcast to the value.
    """

    factor: Float[Array, "..."] | float

    def __call__(self, x: Array) -> Array:
        return x * _like(self.factor, x)


@_edit
class ProjectOut:
    """Directional ablation: remove the component of the value in the span of some directions.

    Args:
      directions: one direction, or several linearly independent directions. They need not be orthonormal: several
        directions are orthonormalised by QR. A single direction of norm zero removes nothing.
    """

    directions: Float[Array, "d"] | Float[Array, "k d"]

    def __call__(self, x: Array) -> Array:
        v = jnp.asarray(self.directions)
        if v.dtype != jnp.float64:
            v = v.astype(jnp.float32)  # the square of a long vector overflows in float16
        if v.ndim == 1:
            norm = jnp.linalg.norm(v)
            unit = (v / jnp.where(norm == 0, jnp.ones_like(norm), norm)).astype(x.dtype)
            return x - jnp.einsum("...d,d->...", x, unit)[..., None] * _like(unit, x)
        basis = jnp.linalg.qr(v.T)[0].astype(x.dtype)
        return x - jnp.einsum("...d,dk,ek->...e", x, basis, basis)


@_edit
class Noise:
    """value + std * standard normal noise.

    Args:
      key: the random key. The same key and shape give the same noise. During generation each new token has the same
        shape, so all new tokens get the same noise.
      std: the standard deviation.
    """

    key: Key[Array, ""]
    std: Float[Array, "..."] | float = 1.0

    def __call__(self, x: Array) -> Array:
        return x + _like(self.std, x) * jax.random.normal(self.key, x.shape, x.dtype)


@_edit
class Clamp:
    """Limit the value to [low, high]. `Clamp(c, c)` sets it to c, for example to fix a feature at one activation.

    Args:
      low: the least value.
      high: the greatest value.

    Example:
        edit(spliced, at("blocks.3.resid_post.latents", Clamp(5.0, 5.0), feature=17))
    """

    low: Float[Array, "..."] | float
    high: Float[Array, "..."] | float

    def __call__(self, x: Array) -> Array:
        return jnp.minimum(jnp.maximum(x, _like(self.low, x)), _like(self.high, x))


@_edit
class Splice(ScopedEdit):
    """Replace the value by its reconstruction from a dictionary. The latents get an address too, `….latents`.

    Args:
      dictionary: encodes the value into latents and decodes the latents. If the value has a head axis, a dictionary of
        all heads together may merge the last two axes, (head, d_head), and decode to the merged width.
      error: add the reconstruction error, x + decode(edited latents) - decode(latents). The value then changes only if
        the latents are edited. The error has no gradient, as with `use_error_term` of SAELens: d output / d x goes
        through the dictionary.

    Example:
        spliced = edit(model, at("blocks.3.resid_post", Splice(sae)))
        edit(spliced, at("blocks.3.resid_post.latents", Clamp(5.0, 5.0), feature=17))
    """

    dictionary: Dictionary
    error: bool = static(default=False)

    def __call__(self, x: Array, site: Site) -> Array:
        latents = self.dictionary.encode(x)
        edited = site("latents", latents, " ".join((*site.axes[: latents.ndim - 1], "feature")))
        decode = lambda z: _as_wide_as(x, self.dictionary.decode(z))
        x_hat = decode(edited)
        if not self.error:
            return x_hat
        x_hat, clean = x_hat.astype(x.dtype), decode(latents).astype(x.dtype)
        return _value_with_gradient_of(x + (x_hat - clean), x_hat)  # exactly x where no latent was edited


def _as_wide_as(x: Array, x_hat: Array) -> Array:
    """`x_hat` with its last axis split into the heads of `x`, if it has one merged axis instead of two."""
    return x_hat.reshape(x.shape) if x_hat.ndim == x.ndim - 1 and x_hat.size == x.size else x_hat


@jax.custom_jvp
def _value_with_gradient_of(value: Array, proxy: Array) -> Array:
    return value


@_value_with_gradient_of.defjvp
def _(primals, tangents):
    return primals[0], tangents[1]


@_edit
class Rotate:
    """Distributed alignment search: take the part of x in a subspace from a donor (Geiger et al. 2023).

    The result is x + ((donor - x) R) Rᵀ.

    Args:
      basis: R, a matrix whose orthonormal columns span the subspace. To train it, use a parametrisation that keeps the
        columns orthonormal (`jnp.linalg.qr(W)[0]`).
      donor: the same value from another run.
    """

    basis: Float[Array, "d k"]
    donor: Float[Array, "..."]

    def __call__(self, x: Array) -> Array:
        basis = jnp.asarray(self.basis).astype(x.dtype)
        return x + jnp.einsum("...d,dk,ek->...e", _like(self.donor, x) - x, basis, basis)
