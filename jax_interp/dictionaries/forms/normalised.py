"""A dictionary that normalises each input vector by itself, and undoes this at its output.

    layer_norm    x' = (x - μ) / (σ + 1e-5)      μ: mean of the d entries of x, σ: their standard deviation (d - 1)
    fixed_norm    x' = x √d / ‖x‖                a vector of zeros stays zeros

    f = encode(x'),   ŷ = decode(f) σ + μ   or   decode(f) ‖x‖ / √d

SAELens calls them `layer_norm` and `constant_norm_rescale`. OpenAI's TopK SAEs of GPT-2 use the first. As published,
the 1e-5 is not in the factor of the output. These factors depend on the input, so they cannot be folded into weights,
and `output(x, z)` needs the input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.forms.dictionary import Dictionary, heads_together
from jax_interp.dictionaries.forms.form import FORMS, Arrays, Description, Form
from jax_interp.dictionaries.sparse_coder import SparseCoder

TokenNorm = Literal["layer_norm", "fixed_norm"]
EPSILON = 1e-5


@FORMS.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Normalised(SparseCoder, Form):
    """A dictionary of normalised values that reads and writes raw values.

    Args:
      dictionary: reads normalised values.
      norm: how each vector is normalised.
      undo: whether the output of the dictionary is a normalised value too. False: it is raw, as for a transcoder whose
        input alone is normalised. A skip reads the raw input then.

    Raises:
      UserError: `norm` is not known, or a dictionary with a skip or of several values has `undo`.

    Example:
        sae = Normalised(Dictionary(W_enc, b_enc, W_dec, b_dec, TopK(32)), "layer_norm")
        edit(model, at("blocks.8.resid_post", Splice(sae)))
    """

    dictionary: Dictionary
    norm: TokenNorm = dataclasses.field(metadata={"static": True})
    undo: bool = dataclasses.field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        if self.norm not in get_args(TokenNorm):
            raise UserError(f"norm={self.norm!r} is not known; known are {' and '.join(get_args(TokenNorm))}")
        weights = (getattr(self.dictionary, name, None) for name in ("W_enc", "W_dec"))
        # JAX also builds it of other leaves: stacked weights, shardings. They are not checked.
        whole = all(getattr(W, "ndim", None) == 2 for W in weights)
        if whole and self.undo and not self.dictionary.is_autoencoder():
            raise UserError("the norm can be undone only at the output of an SAE: for a transcoder, give undo=False")

    @property
    def b_dec(self) -> Float[Array, " d_out"]:
        """The bias of the decoder. With `undo`, it is added to normalised values."""
        return self.dictionary.b_dec

    @property
    def W_dec(self) -> Float[Array, "feature d_out"]:
        """The directions that features write (`directions`)."""
        return self.dictionary.W_dec

    @property
    def n_features(self) -> int:
        return self.dictionary.n_features

    @property
    def d(self) -> int:
        """The width of the value that it reads."""
        return self.dictionary.d

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch feature"]:
        """The latents of `x`, dense."""
        return self.dictionary.encode(self._normalised(x))

    def encode_some(
        self, x: Float[Array, "*batch d_in"], features: Int[Array, " chosen"]
    ) -> Float[Array, "*batch chosen"]:
        """Some of the latents of `x`."""
        return self.dictionary.encode_some(self._normalised(x), features)

    def decode(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d_out"]:
        """The output for latents `z`. Raises UserError if the norm is undone: this needs the input."""
        if self.undo:
            raise UserError(f"the output of a dictionary with {self.norm} depends on its input: call output(x, z)")
        return self.dictionary.decode(z)

    def output(self, x: Float[Array, "*batch d_in"], z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d_out"]:
        if not self.undo:
            return self.dictionary.output(x, z)
        _, shift, scale = self._statistics(x)
        return self.dictionary.decode(z).astype(scale.dtype) * scale + shift

    def directions(self) -> Float[Array, "feature d_out"]:
        """The direction that each feature writes. With `undo`, its length is that in normalised values."""
        return self.dictionary.directions()

    def written(
        self,
        x: Float[Array, "*batch d_in"] | None,
        features: Int[Array, " chosen"],
        change: Float[Array, "*batch chosen"],
    ) -> Float[Array, "*batch d_out"]:
        """The change of the output if some latents change. With `undo`, it depends on the input `x`."""
        if not self.undo:
            return self.dictionary.written(x, features, change)
        if x is None:
            raise UserError(
                f"what a latent writes depends on the input of a dictionary with {self.norm}: give the input"
            )
        scale = self._statistics(x)[2]
        return self.dictionary.written(x, features, change).astype(scale.dtype) * scale

    def is_autoencoder(self) -> bool:
        return self.undo and self.dictionary.is_autoencoder()

    def decodes_alone(self) -> bool:
        return not self.undo and self.dictionary.decodes_alone()

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        y = self.output(x, self.encode(x)).astype(x.dtype)
        by_head = y.shape[-1] == self.d and y.size == x.size
        return y.reshape(x.shape) if by_head else y

    def describe(self) -> tuple[Description, Arrays]:
        description, arrays = self.dictionary.describe()
        return description | {"norm": self.norm, "undo": self.undo}, arrays

    @classmethod
    def from_description(cls, description: Mapping[str, Any], arrays: Arrays) -> Self:
        if type(description["undo"]) is not bool:
            raise UserError(f"undo is {description['undo']!r}: true or false")
        return cls(Dictionary.from_description(description, arrays), description["norm"], description["undo"])

    def _normalised(self, x: Array) -> Float[Array, "*batch d"]:
        x, shift, scale = self._statistics(x)
        eps = EPSILON if self.norm == "layer_norm" else 0.0
        by = scale + jnp.asarray(eps, scale.dtype)
        by = jnp.where(by > 0, by, jnp.ones_like(by))
        return (x - shift) / by

    def _statistics(self, x: Array) -> tuple[Float[Array, "*batch d"], Float[Array, "..."], Float[Array, "..."]]:
        """(x, shift, scale) in at least float32. The last two broadcast to `x`."""
        x = heads_together(x, self.d)
        x = x.astype(jnp.promote_types(self.b_dec.dtype, jnp.float32))
        if self.norm == "layer_norm":
            mean = jnp.broadcast_to(jnp.mean(x, axis=-1, keepdims=True), x.shape)
            return x, mean, jnp.broadcast_to(jnp.std(x, axis=-1, keepdims=True, ddof=1), x.shape)
        norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) / self.d)
        return x, jnp.zeros_like(x), jnp.broadcast_to(norm, x.shape)
