"""Norms with a fixed scale. They are affine maps, so they can be applied to each part of a stream separately.

With the scale of the whole stream, `norm(Σ x_i) = Σ linear(x_i) + bias`, where
`linear(x) = weight * (x - mean(x)) / scale` (RMSNorm subtracts no mean). The scale is an activation from the forward
pass. The weights are the raw ones, so you do not need to fold norms first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.addresses import reads_activations
from jax_interp.analysis.parts import Pos, Rows, expand_to, map_rows, select_positions, stack_layers
from jax_interp.analysis.weights import DecoderLike, by_layer, decoder
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.norms import Norm
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Activations, Model


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NormAtScale:
    """A norm at one place of the model, with its scale as data. Fields may have a leading layer axis, for `jax.vmap`.

    If the model has no norm, all fields are None, and this is the identity.
    """

    scale: Float[Array, "*batch_pos 1"] | None
    weight: Float[Array, "d_model"] | None
    bias: Float[Array, "d_model"] | None
    centred: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether the mean is subtracted first (LayerNorm)."""

    @classmethod
    def of(cls, norm: Any, scale: Array | None) -> NormAtScale:
        """A norm of the model with a fixed scale.

        Args:
          norm: a LayerNorm or RMSNorm, of one layer or with a leading layer axis; None for no norm.
          scale: `[*batch_pos, 1]`, the norm's `scale` where it was read; None for its weight and bias alone.

        Raises:
          UserError: another module is in place of the norm.
        """
        if norm is None:
            return cls(None, None, None)
        if not isinstance(norm, Norm):
            raise UserError(
                f"{type(norm).__name__} stands where this model had a norm: it is not known to be linear at a scale"
            )
        bias = None if norm.bias is None else upcast(norm.bias[...])
        return cls(scale, norm.multiplier(), bias, norm.centred)

    def linear(self, x: Float[Array, "*part_batch_pos d_model"]) -> Float[Array, "*part_batch_pos d_model"]:
        """The norm of one part of its input, without the bias. The sum over all parts is the norm minus its bias."""
        x = _subtract_mean(upcast(x)) if self.centred else upcast(x)
        x = x if self.scale is None else x / expand_to(self.scale, x.ndim)
        return x if self.weight is None else x * expand_to(self.weight, x.ndim)

    def __call__(self, x: Float[Array, "*batch_pos d_model"]) -> Float[Array, "*batch_pos d_model"]:
        """The norm of a whole input."""
        y = self.linear(x)
        return y if self.bias is None else y + expand_to(self.bias, y.ndim)

    def transpose(self, direction: Float[Array, "*#batch_pos d_model"]) -> Float[Array, "*batch_pos d_model"]:
        """The transpose of `linear`: `linear(x) · direction = x · transpose(direction)`."""
        d = upcast(direction)
        d = d if self.scale is None else expand_to(d, self.scale.ndim)
        d = d if self.weight is None else d * expand_to(self.weight, d.ndim)
        d = _subtract_mean(d) if self.centred else d
        return d if self.scale is None else d / self.scale


def norm_into(
    model: Model, acts: Activations, layer: int | None = None, *, mlp_input: bool = False, pos: Pos = None
) -> NormAtScale:
    """The norm that reads the stream at one place, with the scale of the forward pass.

    Args:
      model: a decoder, with or without surgery.
      acts: the activations `ln_final.scale`, `blocks.*.ln1.scale` or `blocks.*.ln2.scale`, where there is such a norm.
      layer: take the norm before the attention of this layer; None (or n_layers): the norm before the unembedding.
      mlp_input: take the norm before the MLP of `layer` instead.
      pos: the positions of the scale.

    Raises:
      UserError: the layer does not exist, or the norms of this model come after attention and MLP.
    """
    inner = decoder(model)
    layer = stop_layer(inner, layer, mlp_input)
    norm, address = _norm_into(inner, layer, mlp_input)
    if norm is None and layer < inner.config.n_layers and inner.config.norm != "none":
        raise UserError(
            f"no norm stands before {'the MLP' if mlp_input else 'attention'} in this model: its norms stand "
            f"{inner.config.norm_places} attention and MLP. Use the stack without apply_ln"
        )
    return NormAtScale.of(norm, None if norm is None else upcast(select_positions(acts[address], pos, 1)))


def norm_weight(model: Model, layer: int | None = None, *, mlp_input: bool = False) -> Float[Array, "d_model"] | None:
    """The weight of the norm that `norm_into` returns (1 + weight for Gemma), or None if the norm has no weight."""
    inner = decoder(model)
    norm, _ = _norm_into(inner, stop_layer(inner, layer, mlp_input), mlp_input)
    return NormAtScale.of(norm, None).weight


def norms_after(model: Model, acts: Activations, name: str, n: int, pos: Pos) -> NormAtScale | None:
    """The norms between attention or MLP and the stream (Gemma 2 and 3, OLMo 2).

    Args:
      model: a decoder, with or without surgery.
      acts: the activations `blocks.*.<name>.scale`.
      name: "ln1_post" (after attention) or "ln2_post" (after the MLP).
      n: number of layers.
      pos: the positions of the scale.

    Returns:
      The norms of the first `n` layers, with fields `[layer, ...]`; None if the model has no such norms.
    """
    stacked = by_layer(model, lambda block: getattr(block, name))
    if stacked is None or not n:
        return None
    scale = select_positions(stack_layers(acts, f"{name}.scale", n), pos, 2)
    return NormAtScale.of(jax.tree.map(lambda leaf: leaf[:n], stacked), scale)


@reads_activations("ln_final.scale")
def apply_ln_to_stack(
    model: Model, acts: Activations, stack: Rows, layer: int | None = None, *, mlp_input: bool = False, pos: Pos = None
) -> Rows:
    """Apply the norm that reads the stream to each part of the stream, with the scale of the whole stream.

    The map is linear, so the rows of a decomposition still sum to the norm's output minus its bias. The norm's weight
    and the centring of LayerNorm are applied, so you do not need to fold norms first. (TransformerLens expects folded
    weights and leaves the weight out.) To norm each row by its own scale, as lenses do, use `readout`.

    Args:
      model: a decoder, with or without surgery.
      acts: activations, with the `scale` of the norm.
      stack: `[part, batch, *pos, d_model]`, `Parts` or an array, at the positions `pos`.
      layer: the layer whose norm reads the stream; None: the final norm.
      mlp_input: take the norm before the MLP of `layer`.
      pos: the positions that the stack has.

    Returns:
      The normed stack, of the same type as `stack`.

    Raises:
      UserError: in the same cases as `norm_into`.
    """
    norm = norm_into(model, acts, layer, mlp_input=mlp_input, pos=pos)
    return map_rows(norm.linear, stack)


def stop_layer(model: Model, layer: int | None, mlp_input: bool = False) -> int:
    """Check the layer before which a decomposition stops. None becomes n_layers: the stream before the unembedding."""
    config = decoder(model).config
    layer = config.n_layers if layer is None else layer
    if not 0 <= layer <= config.n_layers:
        raise UserError(f"layer={layer}: from 0 to {config.n_layers} (None), the stream before that layer's attention")
    if mlp_input and (layer == config.n_layers or not config.d_mlp):
        raise UserError("mlp_input needs a layer that has an MLP: give layer, less than n_layers")
    return layer


def _norm_into(inner: DecoderLike, layer: int, mlp_input: bool) -> tuple[Any, str]:
    """The norm that reads the stream there, and the address of its scale."""
    if layer == inner.config.n_layers:
        return inner.ln_final, "ln_final.scale"
    # In a parallel block with one norm, the MLP reads through attention's.
    name = "ln2" if mlp_input and inner.config.parallel != "one norm" else "ln1"
    stacked = by_layer(inner, lambda block: getattr(block, name))
    norm = None if stacked is None else jax.tree.map(lambda leaf: leaf[layer], stacked)
    return norm, f"blocks.{layer}.{name}.scale"


def _subtract_mean(x: Array) -> Array:
    return x - jnp.mean(x, axis=-1, keepdims=True)
