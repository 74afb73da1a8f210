"""What evaluation measures: anything that encodes a value into latents and decodes them.

`SparseCoder` is the base class of dictionaries. An object of your own that has only `encode` and `decode` is measured
too (`as_sparse_coder`).
"""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Float

from jax_interp.surgery.contract import Dictionary as EncoderDecoder


class SparseCoder:
    """Base class of dictionaries: `encode`, `decode`, and what evaluation asks besides, with defaults."""

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch feature"]:
        """The latents of `x`, dense."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def decode(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d_out"]:
        """What the latents `z` write."""
        raise NotImplementedError(f"{type(self).__name__} has no decode")

    def output(self, x: Float[Array, "row d_in"], z: Float[Array, "row feature"]) -> Float[Array, "row d_out"]:
        """What the dictionary writes for `x`, whose latents are `z`. A skip from `x` is part of it."""
        return self.decode(z)

    def directions(self) -> Float[Array, "feature d_out"] | None:
        """One row for each feature: what it writes. None where features have no fixed direction."""
        return None

    @property
    def n_sources(self) -> int | None:
        """How many values have latents of their own, which stand side by side in the last axis. None: latents belong to
        all values that are read."""
        return None

    def is_autoencoder(self) -> bool:
        """Whether it writes the value that it reads, as far as its weights show."""
        return True


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Adapter(SparseCoder):
    """An object with `encode` and `decode`, and perhaps `W_enc`, `W_dec` or `W_skip`, as a `SparseCoder`."""

    wrapped: EncoderDecoder

    def encode(self, x: Array) -> Array:
        return self.wrapped.encode(x)

    def decode(self, z: Array) -> Array:
        return self.wrapped.decode(z)

    def output(self, x: Array, z: Array) -> Array:
        skip = self._weight("W_skip")
        return self.decode(z) if skip is None else self.decode(z) + x.astype(skip.dtype) @ skip

    def directions(self) -> Array | None:
        return self._weight("W_dec")

    def is_autoencoder(self) -> bool:
        W_enc, W_dec = self._weight("W_enc"), self._weight("W_dec")
        square = W_enc is None or W_dec is None or W_enc.shape == W_dec.shape[::-1]
        return square and self._weight("W_skip") is None

    def _weight(self, name: str) -> Array | None:
        return getattr(self.wrapped, name, None)


def as_sparse_coder(dictionary: EncoderDecoder) -> SparseCoder:
    """`dictionary` itself, or a wrapper that gives an object with `encode` and `decode` the defaults."""
    return dictionary if isinstance(dictionary, SparseCoder) else _Adapter(dictionary)
