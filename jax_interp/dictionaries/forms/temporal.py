"""A temporal SAE: attention over earlier tokens predicts a part of each token's code, and the rest is sparse
(arXiv:2511.01836). For inference only.

    r = s x - b_dec;     for each attention layer:
        c = max(r W_enc / 4d, 0);    p = max(attention(queries from c, keys and values from c one token earlier), 0)
        v = p W_dec;    a = (v·r) / (‖v‖ + 1e-6)²;    predicted = predicted + a p;    r = r - a v

    f = max(r W_enc / 4d, 0), of which the k largest are kept;     x̂ = ((f + predicted) W_dec + b_dec) / s

The latents are f, the novel part. What is predicted is no latent, so `decode(f)` is not the reconstruction and
`output(x, f)` is. Both need whole texts [batch, pos, d].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.forms.form import FORMS, Arrays, Description, Form, check_shapes
from jax_interp.dictionaries.sparse_coder import SparseCoder

EPSILON = 1e-6


@register_dataclass
@dataclasses.dataclass(frozen=True)
class PredictingAttention:
    """Causal attention between codes. Queries come from a token, keys and values from the tokens before it."""

    W_Q: Float[Array, "feature qk"]
    b_Q: Float[Array, " qk"]
    W_K: Float[Array, "feature qk"]
    b_K: Float[Array, " qk"]
    W_V: Float[Array, "feature feature"]
    b_V: Float[Array, " feature"]
    W_O: Float[Array, "feature feature"]
    b_O: Float[Array, " feature"]

    def __call__(self, code: Float[Array, "batch pos feature"], n_heads: int) -> Float[Array, "batch pos feature"]:
        earlier = jnp.pad(code, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        by_head = lambda a, W, b: (a @ W + b[None, None, :]).reshape(*a.shape[:2], n_heads, -1)
        q = by_head(code, self.W_Q, self.b_Q)
        k, v = by_head(earlier, self.W_K, self.b_K), by_head(earlier, self.W_V, self.b_V)
        # values are wider than keys, which jax.nn.dot_product_attention does not take
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))
        causal = jnp.broadcast_to(jnp.tri(code.shape[1], dtype=bool), scores.shape)
        pattern = jax.nn.softmax(jnp.where(causal, scores, jnp.asarray(-jnp.inf, scores.dtype)), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", pattern, v)
        return mixed.reshape(code.shape) @ self.W_O + self.b_O[None, None, :]


@FORMS.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Temporal(SparseCoder, Form):
    """A temporal SAE. `encode`, `output` and `__call__` take whole texts [batch, pos, d], and refuse single rows.

    Args:
      W_enc: the encoder. None: the transposed decoder.
      W_dec: the decoder.
      b_dec: the bias of the decoder.
      layers: the attention layers that predict codes.
      n_heads: the number of heads of each layer.
      k: the number of latents that are on, at most. None: all that are positive.
      scale: the input is multiplied by it, and the output is divided by it.
      centred: whether `b_dec` is subtracted from the scaled input.
    """

    W_enc: Float[Array, "d feature"] | None
    W_dec: Float[Array, "feature d"]
    b_dec: Float[Array, " d"]
    layers: tuple[PredictingAttention, ...]
    n_heads: int = dataclasses.field(metadata={"static": True})
    k: int | None = dataclasses.field(default=None, metadata={"static": True})
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    centred: bool = dataclasses.field(default=True, metadata={"static": True})

    whole_text = True

    @property
    def n_features(self) -> int:
        return self.W_dec.shape[0]

    def encode(self, x: Float[Array, "batch pos d"]) -> Float[Array, "batch pos feature"]:
        """The novel part of the code."""
        return self.codes(x)[0]

    def codes(
        self, x: Float[Array, "batch pos d"]
    ) -> tuple[Float[Array, "batch pos feature"], Float[Array, "batch pos feature"]]:
        """(the novel part of the code, the part that attention predicts)."""
        if x.ndim != 3 or x.shape[-1] != self.b_dec.shape[0]:
            raise UserError(
                f"a temporal dictionary reads earlier tokens too, so it takes whole texts [batch, pos, "
                f"{self.b_dec.shape[0]}], and got the shape {list(x.shape)}. It cannot be used on separate rows"
            )
        W_dec, W_enc = self.W_dec, self.W_dec.T if self.W_enc is None else self.W_enc
        rest = x.astype(W_dec.dtype) * jnp.asarray(self.scale, W_dec.dtype)
        if self.centred:
            rest = rest - self.b_dec[None, None, :]
        size = jnp.asarray(1 / (4 * self.b_dec.shape[0]), W_dec.dtype)
        predicted = jnp.zeros((*x.shape[:2], self.n_features), W_dec.dtype)
        for layer in self.layers:
            part = jax.nn.relu(layer(jax.nn.relu((rest * size) @ W_enc), self.n_heads))
            written = part @ W_dec
            norm = jnp.linalg.norm(written, axis=-1, keepdims=True) + jnp.asarray(EPSILON, W_dec.dtype)
            factor = jnp.sum(written * rest, axis=-1, keepdims=True) / (norm * norm)
            predicted, rest = predicted + part * factor, rest - factor * written
        novel = jax.nn.relu((rest * size) @ W_enc)
        if self.k is not None:
            flat = novel.reshape(-1, self.n_features)
            values, places = top_k(flat, self.k)
            rows = jnp.arange(len(flat))[:, None]
            novel = jnp.zeros_like(flat).at[rows, places].set(values).reshape(novel.shape)
        return novel, predicted

    def decode(self, z: Float[Array, "batch pos feature"]) -> Float[Array, "batch pos d"]:
        """Raises UserError: the predicted part of the code depends on the input."""
        raise UserError("the output of a temporal dictionary depends on its input: call output(x, z)")

    def output(
        self, x: Float[Array, "batch pos d"], z: Float[Array, "batch pos feature"]
    ) -> Float[Array, "batch pos d"]:
        return self._written(z.astype(self.W_dec.dtype) + self.codes(x)[1])

    def __call__(self, x: Float[Array, "batch pos d"]) -> Float[Array, "batch pos d"]:
        novel, predicted = self.codes(x)
        return self._written(novel + predicted).astype(x.dtype)

    def directions(self) -> Float[Array, "feature d"]:
        """The direction that each feature writes, of the length that it has in scaled values."""
        return self.W_dec

    def written(
        self,
        x: Float[Array, "batch pos d"] | None,
        features: Int[Array, " chosen"],
        change: Float[Array, "batch pos chosen"],
    ) -> Float[Array, "batch pos d"]:
        """The change of the output, which is in the units of the input, if some latents change."""
        return super().written(x, features, change) / jnp.asarray(self.scale, change.dtype)

    def decodes_alone(self) -> bool:
        return False

    def describe(self) -> tuple[Description, Arrays]:
        arrays = {"W_dec": self.W_dec, "b_dec": self.b_dec}
        if self.W_enc is not None:
            arrays["W_enc"] = self.W_enc
        for i, layer in enumerate(self.layers):
            arrays |= {f"layers.{i}.{name}": a for name, a in vars(layer).items()}
        description = {
            "d_in": self.b_dec.shape[0],
            "n_features": self.n_features,
            "layers": len(self.layers),
            "n_heads": self.n_heads,
            "k": self.k,
            "scale": self.scale,
            "centred": self.centred,
        }
        return description, arrays

    @classmethod
    def from_description(cls, description: Mapping[str, Any], arrays: Arrays) -> Self:
        d, m, n_heads = (description[name] for name in ("d_in", "n_features", "n_heads"))
        shapes = {"W_dec": (m, d), "b_dec": (d,)} | ({"W_enc": (d, m)} if "W_enc" in arrays else {})
        names = tuple(field.name for field in dataclasses.fields(PredictingAttention))
        for i in range(description["layers"]):
            qk = arrays[f"layers.{i}.b_Q"].shape
            widths = (qk[0], qk[0], m, m)
            for (weight, bias), n in zip(zip(names[::2], names[1::2], strict=True), widths, strict=True):
                shapes |= {f"layers.{i}.{weight}": (m, n), f"layers.{i}.{bias}": (n,)}
        check_shapes(arrays, shapes)
        k, scale, centred = (description[name] for name in ("k", "scale", "centred"))
        whole = type(n_heads) is int and n_heads > 0 and (k is None or (type(k) is int and 0 < k <= m))
        if not whole or type(scale) is not float or type(centred) is not bool:
            raise UserError(f"n_heads is {n_heads!r}, k {k!r}, scale {scale!r} and centred {centred!r}")
        layers = tuple(
            PredictingAttention(*(arrays[f"layers.{i}.{name}"] for name in names)) for i in range(description["layers"])
        )
        return cls(arrays.get("W_enc"), arrays["W_dec"], arrays["b_dec"], layers, n_heads, k, scale, centred)

    def _written(self, code: Float[Array, "batch pos feature"]) -> Float[Array, "batch pos d"]:
        return (code @ self.W_dec + self.b_dec[None, None, :]) / jnp.asarray(self.scale, self.W_dec.dtype)
