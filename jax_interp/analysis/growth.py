"""How the residual stream grows from layer to layer (Heimersheim & Turner 2023)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.analysis.addresses import reads_activations
from jax_interp.analysis.parts import checked_mask
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Activations


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NormGrowth:
    """Norms over d_model, as geometric means over positions."""

    resid: Float[Array, "layer_and_last"]
    """The norm of the stream before each layer, and after the last."""
    attn_out: Float[Array, "layer"] | None
    """The norm of what the attention of each layer adds; None if it was not read."""
    mlp_out: Float[Array, "layer"] | None
    """The norm of what the MLP of each layer adds; None if it was not read."""

    @property
    def by_layer(self) -> Float[Array, "layer"]:
        """The factor by which each layer multiplies the norm of the stream."""
        return self.resid[1:] / self.resid[:-1]

    def rate(self, first: int = 0, last: int | None = None) -> Float[Array, ""]:
        """The geometric mean of the factors of several layers.

        Args:
          first: the first layer that counts.
          last: the layer before which to stop; None: after the last layer.

        Raises:
          UserError: `last` does not come after `first`, or a layer does not exist.
        """
        last = self.resid.shape[0] - 1 if last is None else last
        if not 0 <= first < last < self.resid.shape[0]:
            raise UserError(f"from layer {first} to {last}: this stream has the points 0 to {self.resid.shape[0] - 1}")
        return (self.resid[last] / self.resid[first]) ** (1 / (last - first))


@reads_activations("blocks.*.resid_pre", "blocks.-1.resid_post", "blocks.*.attn_out", "blocks.*.mlp_out")
def norm_growth(
    acts: Activations,
    *,
    mask: Bool[Array, "batch pos"] | None = None,
    exclude_bos: bool = True,
    centred: bool = False,
) -> NormGrowth:
    """Norms of the stream, and of what each layer's attention and MLP add to it (Heimersheim & Turner 2023).

    Args:
      acts: the activations `blocks.*.resid_pre`, `blocks.-1.resid_post`; and `blocks.*.attn_out`, `blocks.*.mlp_out`
        for their norms.
      mask: True at real tokens, if rows are padded.
      exclude_bos: leave out the first token of each row, whose norm is often a hundred times that of the others.
      centred: subtract the mean over d_model first, as LayerNorm does.

    Raises:
      UserError: only one position was read, and `exclude_bos` leaves it out; or the mask has another shape or dtype.
    """
    last = upcast(acts["blocks.-1.resid_post"])
    counted = checked_mask(mask, last.shape[:2])
    if exclude_bos:
        if last.shape[1] == 1:
            raise UserError("one position was read, which exclude_bos leaves out: read longer sequences")
        counted = counted & (jnp.cumsum(counted.astype(jnp.int32), axis=1) > 1)
    weight = counted.astype(last.dtype) / jnp.sum(counted.astype(last.dtype))

    def norms(x: Float[Array, "layer batch pos d_model"]) -> Float[Array, "layer"]:
        x = upcast(x)
        x = x - jnp.mean(x, axis=-1, keepdims=True) if centred else x
        logs = jnp.log(jnp.linalg.norm(x, axis=-1))
        return jnp.exp(jnp.sum(jnp.where(counted[None], logs, jnp.zeros_like(logs)) * weight[None], axis=(1, 2)))

    def of(name: str) -> Float[Array, "layer"] | None:
        return norms(acts[f"blocks.*.{name}"]) if f"blocks.*.{name}" in acts else None

    resid = jnp.concatenate([norms(acts["blocks.*.resid_pre"]), norms(last[None])])
    return NormGrowth(resid, of("attn_out"), of("mlp_out"))
