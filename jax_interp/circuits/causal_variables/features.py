"""Features: which part of a value is exchanged between two runs.

    Whole()                        all of it
    Subspace(basis)                the part in the span of orthonormal columns (Geiger et al. 2024, arXiv:2303.02536)
    Subspace(basis, mask)          some of these columns: a learned boundary, or principal components
    Coordinates(mask)              some neurons
    Latents(dictionary, mask)      some latents of a dictionary; what it does not reconstruct stays as it is

A mask is 1 where the feature comes from the source, 0 where it stays that of the base, or between while it is learned.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Dictionary, is_known
from jax_interp.surgery.sparse_coder import as_sparse_coder
from jax_interp.surgery.value_tokens import wide


class Features(abc.ABC):
    """Base class: a frozen dataclass that is registered as a pytree. Its arrays are data."""

    @abc.abstractmethod
    def exchange(self, base: Float[Array, "*rows d"], source: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """The value of the base with these features of the source, in float32 at least."""

    @abc.abstractmethod
    def check(self, d: int) -> None:
        """Raise `UserError` if the features are not of values with `d` entries."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Whole(Features):
    """The whole value."""

    def exchange(self, base: Float[Array, "*rows d"], source: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        return wide(source)

    def check(self, d: int) -> None:
        """Every value fits."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Subspace(Features):
    """The part of the value in a subspace: base + ((source - base) R ∘ mask) Rᵀ.

    Args:
      basis: R, with orthonormal columns. `span` makes it from any directions.
      mask: which columns are exchanged. None: all.
    """

    basis: Float[Array, "d k"]
    mask: Float[Array, " k"] | None = None

    def exchange(self, base: Float[Array, "*rows d"], source: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        base = wide(base)
        basis = self.basis.astype(base.dtype)
        moved = jnp.einsum("...d,dk->...k", wide(source).astype(base.dtype) - base, basis)
        if self.mask is not None:
            moved = moved * jnp.broadcast_to(self.mask.astype(base.dtype), moved.shape)
        return base + jnp.einsum("...k,dk->...d", moved, basis)

    def check(self, d: int) -> None:
        k = self.basis.shape[-1]
        if self.basis.shape != (d, k) or (self.mask is not None and self.mask.shape != (k,)):
            mask = None if self.mask is None else self.mask.shape
            raise UserError(f"the basis {self.basis.shape} with the mask {mask} is not of values with {d} entries")
        if is_known(self.basis):
            error = jnp.max(jnp.abs(self.basis.T @ self.basis - jnp.eye(k, dtype=self.basis.dtype)), initial=0.0)
            if not float(error) < 1e-3:
                raise UserError(
                    f"the columns of the basis are not orthonormal (they differ from it by {float(error):.3g}): "
                    "use span(directions)"
                )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Coordinates(Features):
    """Some entries of the value, such as neurons.

    Args:
      mask: 1 for the entries of the source, 0 for those of the base.
    """

    mask: Float[Array, " d"]

    def exchange(self, base: Float[Array, "*rows d"], source: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        base = wide(base)
        mask = jnp.broadcast_to(self.mask.astype(base.dtype), base.shape)
        return (1 - mask) * base + mask * wide(source).astype(base.dtype)

    def check(self, d: int) -> None:
        if self.mask.shape != (d,):
            raise UserError(f"the mask has {self.mask.shape[0]} entries, the value has {d}")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Latents(Features):
    """Some latents of a dictionary. The reconstruction error of the base is kept.

    The result is base + decode(z') - decode(z), where z are the latents of the base, and z' are those with the masked
    ones from the source.

    Args:
      dictionary: it reconstructs the value that it reads.
      mask: 1 for the latents of the source, 0 for those of the base.
    """

    dictionary: Dictionary
    mask: Float[Array, " feature"]

    def exchange(self, base: Float[Array, "*rows d"], source: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        coder = as_sparse_coder(self.dictionary)
        z, z_source = coder.encode(base), coder.encode(source)
        mask = jnp.broadcast_to(self.mask.astype(z.dtype), z.shape)
        x, after, before = wide(base), *(coder.output(base, one) for one in ((1 - mask) * z + mask * z_source, z))
        dtype = jnp.promote_types(x.dtype, after.dtype)
        return x.astype(dtype) + (after.astype(dtype) - before.astype(dtype))

    def check(self, d: int) -> None:
        coder = as_sparse_coder(self.dictionary)
        if not coder.is_autoencoder() or coder.whole_text:
            raise UserError(
                f"{type(self.dictionary).__name__} does not reconstruct the value that it reads, token by token: give "
                "a sparse autoencoder, not a transcoder or a dictionary that reads earlier tokens"
            )
        latents = latent_count(self.dictionary, d)
        if self.mask.shape != (latents,):
            raise UserError(f"the mask has the shape {self.mask.shape}, the dictionary has {latents} latents")


def latent_count(dictionary: Dictionary, d: int) -> int:
    """The number of latents of a dictionary of values with `d` entries."""
    try:
        return jax.eval_shape(as_sparse_coder(dictionary).encode, jax.ShapeDtypeStruct((1, d), jnp.float32)).shape[-1]
    except (TypeError, ValueError) as error:
        raise UserError(f"the dictionary cannot encode values with {d} entries: {error}") from error


def span(directions: Float[Array, "d k"] | Float[Array, " d"]) -> Subspace:
    """The subspace that some directions span.

    Args:
      directions: linearly independent columns, not necessarily orthonormal; or one direction.

    Raises:
      UserError: a direction is zero, not finite, or depends on the others.
    """
    columns = jnp.asarray(directions)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or not 1 <= columns.shape[1] <= columns.shape[0]:
        raise UserError(f"the directions have the shape {columns.shape}: give [d, k] with 1 <= k <= d")
    columns = columns.astype(jnp.promote_types(columns.dtype, jnp.float32))
    sizes = jnp.linalg.svd(columns / jnp.linalg.norm(columns, axis=0, keepdims=True), compute_uv=False)
    if not float(sizes[-1]) > 1e-5:
        raise UserError("the directions are not finite, or one is zero or depends on the others")
    return Subspace(jnp.linalg.qr(columns)[0])


def cosines(first: Subspace, second: Subspace) -> Float[Array, " k"]:
    """The cosines of the principal angles between two subspaces, in descending order. 1: a common direction.

    A mask counts as chosen where it is above 1/2.
    """
    chosen = lambda one: one.basis if one.mask is None else one.basis[:, one.mask > 0.5]
    return jnp.clip(jnp.linalg.svd(chosen(first).T @ chosen(second), compute_uv=False), 0, 1)
