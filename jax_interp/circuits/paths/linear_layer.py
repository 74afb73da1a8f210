"""`LinearLayer`: the attention of a layer with its pattern and the scales of its norms held fixed, a linear map."""

from __future__ import annotations

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.norm_at_scale import NormAtScale
from jax_interp.core.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LinearLayer:
    """One layer, or all layers with a leading axis.

    Args:
      pattern: the attention pattern.
      W_V: the value matrix of each head, [head, d_model, d_head].
      W_O: the output matrix of each head, [head, d_head, d_model].
      ln: the norm before attention.
      ln_post: the norm after attention; None: there is none.
      constants: what the layer adds to the stream whatever it reads, by its kind: "b" biases, "m" the MLP.
    """

    pattern: Float[Array, "prompt head pos key"]
    W_V: Float[Array, "head d_model d_head"]
    W_O: Float[Array, "head d_head d_model"]
    ln: NormAtScale
    ln_post: NormAtScale | None
    constants: dict[str, Float[Array, "prompt pos d_model"]]

    def at(self, layer: int) -> Self:
        """One layer of all layers."""
        return jax.tree.map(lambda leaf: leaf[layer], self)

    def writes(self, y: Float[Array, "prompt pos d_model"]) -> Float[Array, "head prompt pos d_model"]:
        """What each head writes to the stream for this part of its input."""
        v = jnp.einsum("psd,hde->phse", self.ln.linear(y), self.W_V)
        z = jnp.einsum("phts,phse->phte", self.pattern, v)
        out = jnp.einsum("phte,hed->hptd", z, self.W_O)
        return out if self.ln_post is None else self.ln_post.linear(out)

    def reads(self, v: Float[Array, "prompt pos d_model"]) -> Float[Array, "head prompt pos d_model"]:
        """The transpose of each head's map: the direction in the stream that the head turns into `v`."""
        v = v if self.ln_post is None else self.ln_post.transpose(v)
        z = jnp.einsum("ptd,hed->phte", v, self.W_O)
        back = jnp.einsum("phts,phte->phse", self.pattern, z)
        normed = jnp.einsum("phse,hde->hpsd", back, self.W_V)
        return jax.vmap(self.ln.transpose)(normed)

    def bias(
        self, b_V: Float[Array, "head d_head"], b_O: Float[Array, " d_model"]
    ) -> Float[Array, "prompt pos d_model"]:
        """What the biases of the norms, the values and the output add to the stream."""
        v = b_V if self.ln.bias is None else b_V + jnp.einsum("d,hde->he", self.ln.bias, self.W_V)
        each = jnp.einsum("he,hed->hd", v, self.W_O)
        out = jnp.einsum("phts,hd->ptd", self.pattern, each) + b_O[None, None]
        return out if self.ln_post is None else self.ln_post(out)
