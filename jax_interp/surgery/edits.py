"""The built-in edits: small callable pytrees, value -> value. Your own callable pytrees are edits too.

The fields of an edit are data. They can be swept, differentiated and sharded, and a new value does not compile again.
An edit computes in at least float32, and its result is cast to the dtype of the edited value. The shapes below are for
one layer; in `Each(edit)` the fields have a leading layer axis. Scalars and smaller arrays are broadcast to the value
from the right, as in NumPy.

The `pos` axis of a field goes with the tokens of the text, one entry for each token, padding included. In generation
the field may end with the prompt, if `pos=` or `where=` keeps the edit off the new tokens.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.short_repr import short_repr
from jax_interp.surgery.contract import Dictionary, ScopedEdit, TokenEdit
from jax_interp.surgery.site import Site
from jax_interp.surgery.sparse_coder import as_sparse_coder
from jax_interp.surgery.taps import static
from jax_interp.surgery.value_tokens import WHOLE_TEXT, ValueTokens, wide

EDITS: list[type] = []
"""The built-in edits, which `load_edits` can make from a file."""


@typing.dataclass_transform(frozen_default=True)
def _edit(cls: type) -> Any:
    """Class decorator: a frozen dataclass that is a pytree, added to `EDITS`."""
    cls.__repr__ = short_repr  # type: ignore[method-assign]  # before `dataclass` makes one with whole arrays
    registered = register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))
    EDITS.append(registered)
    return registered


@_edit
class Zero:
    """Zero ablation: replace the value by zeros.

    Example:
        edit(model, at("blocks.1.attn.z", Zero(), head=3))
    """

    def __call__(self, x: Array) -> Array:
        return jnp.zeros_like(x)


@_edit
class Mean(TokenEdit):
    """Mean ablation: replace the value by a mean.

    Args:
      mean: the mean over a dataset, broadcast to the value. None: the mean over the batch of this call, separately for
        each absolute position. Padding is no part of it: the mean is over the rows that have the position.
    """

    mean: Shaped[Array, "..."] | None = None

    def __call__(self, x: Array, tokens: ValueTokens = WHOLE_TEXT) -> Array:
        return tokens.mean_over_rows(x) if self.mean is None else tokens.like(self.mean, x)


@_edit
class Resample(TokenEdit):
    """Resample ablation: each example of a batch gets the value of another example of the batch.

    Args:
      donor: example `i` gets the value of example `donor[i]`, at each absolute position. A position that the donor does
        not have keeps its value.
    """

    donor: Int[Array, "batch"]

    def __call__(self, x: Array, tokens: ValueTokens = WHOLE_TEXT) -> Array:
        return tokens.from_rows(x, self.donor)


@_edit
class Replace(TokenEdit):
    """Activation patching: replace the value by another one. Gradients flow into the new value.

    Args:
      value: the new value, from another run for example.

    Example:
        _, acts = call(read(model, "blocks.2.resid_post"), clean)
        patched = edit(model, at("blocks.2.resid_post", Replace(acts["blocks.2.resid_post"]), pos=5))
    """

    value: Shaped[Array, "..."]

    def __call__(self, x: Array, tokens: ValueTokens = WHOLE_TEXT) -> Array:
        return tokens.like(self.value, x)


@_edit
class Freeze(TokenEdit):
    """`Replace` without a gradient into the new value. Use it to freeze attention patterns or norm scales.

    Args:
      value: the new value, from a clean run for example.
    """

    value: Shaped[Array, "..."]

    def __call__(self, x: Array, tokens: ValueTokens = WHOLE_TEXT) -> Array:
        return jax.lax.stop_gradient(tokens.like(self.value, x))


@_edit
class Add(TokenEdit):
    """Steering: value + coefficient * vector.

    Args:
      vector: the steering vector, broadcast to the value.
      coefficient: the factor of the vector.

    Example:
        edit(model, at("blocks.2.resid_post", Add(vector, 4.0), pos=-1))
    """

    vector: Float[Array, "..."]
    coefficient: Float[Array, "..."] | float = 1.0

    def __call__(self, x: Array, tokens: ValueTokens = WHOLE_TEXT) -> Array:
        return wide(x) + tokens.like(self.coefficient, x) * tokens.like(self.vector, x)


@_edit
class Scale(TokenEdit):
    """factor * value.

    Args:
      factor: a number, or an array that is broadcast to the value.
    """

    factor: Float[Array, "..."] | float

    def __call__(self, x: Array, tokens: ValueTokens = WHOLE_TEXT) -> Array:
        return wide(x) * tokens.like(self.factor, x)


@_edit
class ProjectOut:
    """Directional ablation: remove the component of the value in the span of some directions.

    Args:
      directions: one direction, or several linearly independent directions. They need not be orthonormal: several
        directions are orthonormalised by QR. A single direction of norm zero removes nothing.
    """

    directions: Float[Array, "d"] | Float[Array, "k d"]

    def __call__(self, x: Array) -> Array:
        x = wide(x)
        v = jnp.asarray(self.directions).astype(x.dtype)
        if v.ndim == 1:
            norm = jnp.linalg.norm(v)
            unit = v / jnp.where(norm == 0, jnp.ones_like(norm), norm)
            return x - jnp.einsum("...d,d->...", x, unit)[..., None] * jnp.broadcast_to(unit, x.shape)
        basis = jnp.linalg.qr(v.T)[0]
        return x - jnp.einsum("...d,dk,ek->...e", x, basis, basis)


@_edit
class Noise(TokenEdit):
    """value + std * standard normal noise.

    Args:
      key: the random key. The same key gives the same noise to a token of the same row and absolute position, whatever
        the padding, the length of the text and the dtype of the model.
      std: the standard deviation.
    """

    key: Key[Array, ""]
    std: Float[Array, "..."] | float = 1.0

    def __call__(self, x: Array, tokens: ValueTokens = WHOLE_TEXT) -> Array:
        return wide(x) + tokens.like(self.std, x) * tokens.noise(self.key, x)


@_edit
class Clamp(TokenEdit):
    """Limit the value to [low, high]. `Clamp(c, c)` sets it to c, for example to fix a feature at one activation.

    Args:
      low: the least value.
      high: the greatest value.

    Example:
        edit(spliced, at("blocks.3.resid_post.latents", Clamp(5.0, 5.0), feature=17))
    """

    low: Float[Array, "..."] | float
    high: Float[Array, "..."] | float

    def __call__(self, x: Array, tokens: ValueTokens = WHOLE_TEXT) -> Array:
        return jnp.minimum(jnp.maximum(wide(x), tokens.like(self.low, x)), tokens.like(self.high, x))


@_edit
class Splice(ScopedEdit):
    """Replace the value by its reconstruction from a dictionary. The latents get an address too, `….latents`.

    Args:
      dictionary: encodes the value into latents and decodes the latents. If the value has a head axis, a dictionary of
        all heads together may merge the last two axes, (head, d_head), and decode to the merged width. The
        reconstruction is its `output(x, latents)` if it is a `SparseCoder`, else `decode(latents)`.
      error: add the reconstruction error, x + output(x, edited latents) - output(x, latents). The value then changes
        only if the latents are edited. The error has no gradient, as with `use_error_term` of SAELens:
        d output / d x goes through the dictionary.

    Example:
        spliced = edit(model, at("blocks.3.resid_post", Splice(sae)))
        edit(spliced, at("blocks.3.resid_post.latents", Clamp(5.0, 5.0), feature=17))
    """

    dictionary: Dictionary
    error: bool = static(default=False)

    def __call__(self, x: Array, site: Site) -> Array:
        coder = as_sparse_coder(self.dictionary)
        if not coder.is_autoencoder():
            raise UserError(
                "this dictionary writes another value than it reads, or has a skip from its input, so it cannot be "
                "spliced into one value; use jax_interp.dictionaries.replacement.replacement"
            )
        if coder.whole_text and not site.tokens.are_whole_texts:
            raise UserError(
                f"{type(self.dictionary).__name__} reads earlier tokens too: give whole texts of one length, without "
                "padding and without a cache"
            )
        latents = coder.encode(x)
        edited = site("latents", latents, " ".join((*site.axes[: latents.ndim - 1], "feature")))
        decode = lambda z: _as_wide_as(x, coder.output(x, z))
        x_hat = decode(edited)
        if not self.error:
            return x_hat
        dtype = jnp.promote_types(wide(x).dtype, x_hat.dtype)  # the difference of two roundings would remain
        x_hat, clean = x_hat.astype(dtype), decode(latents).astype(dtype)
        return value_with_gradient_of(x.astype(dtype) + (x_hat - clean), x_hat)  # exactly x where no latent was edited


def _as_wide_as(x: Array, x_hat: Array) -> Array:
    """`x_hat` with its last axis split into the heads of `x`, if it has one merged axis instead of two."""
    return x_hat.reshape(x.shape) if x_hat.ndim == x.ndim - 1 and x_hat.size == x.size else x_hat


@jax.custom_jvp
def value_with_gradient_of(value: Array, proxy: Array) -> Array:
    """`value`, whose gradient is that of `proxy`."""
    return value


@value_with_gradient_of.defjvp
def _(primals, tangents):
    return primals[0], tangents[1]


@_edit
class Rotate(TokenEdit):
    """Distributed alignment search: take the part of x in a subspace from a donor (Geiger et al. 2023).

    The result is x + ((donor - x) R) Rᵀ.

    Args:
      basis: R, a matrix whose orthonormal columns span the subspace. To train it, use a parametrisation that keeps the
        columns orthonormal (`jnp.linalg.qr(W)[0]`).
      donor: the same value from another run.
    """

    basis: Float[Array, "d k"]
    donor: Float[Array, "..."]

    def __call__(self, x: Array, tokens: ValueTokens = WHOLE_TEXT) -> Array:
        x = wide(x)
        basis = jnp.asarray(self.basis).astype(x.dtype)
        return x + jnp.einsum("...d,dk,ek->...e", tokens.like(self.donor, x) - x, basis, basis)
