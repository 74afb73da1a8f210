"""The interface that evaluation uses: an object that encodes a value into latents and decodes them.

`SparseCoder` is the base class of dictionaries. An object of your own needs only `encode` and `decode`;
`as_sparse_coder` gives it the other methods.
"""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Float

from jax_interp.surgery.contract import Dictionary as EncoderDecoder


class SparseCoder:
    """Base class of dictionaries: `encode`, `decode`, and optional methods that evaluation uses."""

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch feature"]:
        """The latents of `x`, dense."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def decode(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d_out"]:
        """The reconstruction from the latents `z`."""
        raise NotImplementedError(f"{type(self).__name__} has no decode")

    def output(self, x: Float[Array, "row d_in"], z: Float[Array, "row feature"]) -> Float[Array, "row d_out"]:
        """The full output for the input `x` with latents `z`. It includes a skip from `x`, if there is one."""
        return self.decode(z)

    def directions(self) -> Float[Array, "feature d_out"] | None:
        """The direction that each feature writes, one row per feature. None if features have no fixed direction."""
        return None

    @property
    def n_sources(self) -> int | None:
        """The number of sources. Each source has its own latents; they are side by side in the last axis. None: there
        are no separate sources, and every latent reads all values."""
        return None

    def is_autoencoder(self) -> bool:
        """Whether it reconstructs the value that it reads. This is judged from the shapes of its weights."""
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
    """Return `dictionary` if it is a `SparseCoder`, else wrap it. The wrapper adds the default methods."""
    return dictionary if isinstance(dictionary, SparseCoder) else _Adapter(dictionary)
