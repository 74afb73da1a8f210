"""The interface that `Splice` and evaluation use: an object that encodes a value into latents and decodes them.

`SparseCoder` is the base class of dictionaries. An object of your own needs only `encode` and `decode`;
`as_sparse_coder` gives it the other methods. `output(x, z)` is the reconstruction; `decode(z)` alone is not enough for
a dictionary with a skip, or for one that normalises its input and undoes this at the output.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery.contract import Dictionary as EncoderDecoder


class SparseCoder:
    """Base class of dictionaries: `encode`, `decode`, and optional methods that `Splice` and evaluation use."""

    whole_text: ClassVar[bool] = False
    """Whether the latents of a token depend on earlier tokens. Values are then [batch, pos, d_in] of whole texts."""

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch feature"]:
        """The latents of `x`, dense."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def decode(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d_out"]:
        """The reconstruction from the latents `z`."""
        raise NotImplementedError(f"{type(self).__name__} has no decode")

    def output(self, x: Float[Array, "*batch d_in"], z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d_out"]:
        """The full output for the input `x` with latents `z`: all that depends on `x` is included, such as a skip."""
        return self.decode(z)

    def directions(self) -> Float[Array, "feature d_out"] | None:
        """The direction that each feature writes, one row per feature. None if features have no fixed direction."""
        return None

    def encode_some(
        self, x: Float[Array, "*batch d_in"], features: Int[Array, " chosen"]
    ) -> Float[Array, "*batch chosen"]:
        """Some of the latents of `x`. A dictionary whose latents are independent need not compute the others."""
        return self.encode(x)[..., features]

    def written(
        self,
        x: Float[Array, "*batch d_in"] | None,
        features: Int[Array, " chosen"],
        change: Float[Array, "*batch chosen"],
    ) -> Float[Array, "*batch d_out"]:
        """The change of the output for the input `x` if some latents change: the output is linear in the latents.

        Args:
          x: the input. None: it is not known, which is an error if the change of the output depends on it.
          features: the latents that change.
          change: the change of each of them.

        Raises:
          UserError: features have no fixed direction, or `x` is needed.
        """
        directions = self.directions()
        if directions is None:
            raise UserError(f"the features of {type(self).__name__} have no fixed direction in its output")
        chosen = directions[features].astype(change.dtype)
        return jnp.einsum("...k,kd->...d", change, chosen, precision=jax.lax.Precision.HIGHEST)

    @property
    def n_sources(self) -> int | None:
        """The number of sources. Each source has its own latents; they are side by side in the last axis. None: there
        are no separate sources, and every latent reads all values."""
        return None

    def is_autoencoder(self) -> bool:
        """Whether it reconstructs the value that it reads. This is judged from the shapes of its weights."""
        return True

    def decodes_alone(self) -> bool:
        """Whether its output is `decode(z)` = z W + b with the rows W of `directions()`, whatever the input."""
        return True


@register_dataclass
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
        # the rows of W_enc may be the features here, as in circuit-tracer
        square = W_enc is None or W_dec is None or sorted(W_enc.shape) == sorted(W_dec.shape)
        return square and self._weight("W_skip") is None

    def decodes_alone(self) -> bool:
        return self._weight("W_skip") is None

    def _weight(self, name: str) -> Array | None:
        return getattr(self.wrapped, name, None)


def as_sparse_coder(dictionary: EncoderDecoder) -> SparseCoder:
    """Return `dictionary` if it is a `SparseCoder`, else wrap it. The wrapper adds the default methods."""
    return dictionary if isinstance(dictionary, SparseCoder) else _Adapter(dictionary)
