"""Norms whose scale is held at what it was: affine maps, so that what parts of the stream become can be added up.

`norm(Σ x_i) = Σ linear(x_i) + bias` with `linear(x) = weight * (x - mean(x)) / scale` (no mean for RMSNorm). The scale
is that of the whole stream at a position, which was read. Weights are those that stand: nothing need be folded.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.parts import Parts, Pos, at_pos, each, layers, over
from jax_interp.analysis.weights import by_layer, decoder
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.norms import LayerNorm, RMSNorm
from jax_interp.models.decoder import Decoder
from jax_interp.surgery import Activations


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NormAtScale:
    """A norm at one place with its scale as data. Fields may carry a leading layer axis, for `jax.vmap`."""

    scale: Float[Array, "*batch_pos 1"] | None
    """None, like the others, where the model has no norm here: then all of this is the identity."""
    weight: Float[Array, "d_model"] | None
    bias: Float[Array, "d_model"] | None
    centred: bool = dataclasses.field(default=False, metadata={"static": True})

    def linear(self, x: Float[Array, "*part_batch_pos d_model"]) -> Float[Array, "*part_batch_pos d_model"]:
        """What the norm makes of a part of its input; the parts' sum lacks its `bias`."""
        x = _centred(upcast(x)) if self.centred else upcast(x)
        x = x if self.scale is None else x / over(self.scale, x.ndim)
        return x if self.weight is None else x * over(self.weight, x.ndim)

    def __call__(self, x: Float[Array, "*batch_pos d_model"]) -> Float[Array, "*batch_pos d_model"]:
        """The norm itself, of a whole input."""
        y = self.linear(x)
        return y if self.bias is None else y + over(self.bias, y.ndim)

    def pull(self, direction: Float[Array, "*#batch_pos d_model"]) -> Float[Array, "*batch_pos d_model"]:
        """The transpose of `linear`: `linear(x) · direction = x · pull(direction)`."""
        d = upcast(direction)
        d = d if self.scale is None else over(d, self.scale.ndim)
        d = d if self.weight is None else d * over(self.weight, d.ndim)
        d = _centred(d) if self.centred else d
        return d if self.scale is None else d / self.scale


def frozen(norm: Any, scale: Array | None) -> NormAtScale:
    """`norm` (of one layer or stacked) at `scale`. Raises `UserError` for a module that is no norm of ours."""
    if norm is None:
        return NormAtScale(None, None, None)
    if not isinstance(norm, (LayerNorm, RMSNorm)):
        raise UserError(
            f"{type(norm).__name__} stands where this model had a norm: whether it is linear at a scale is not known"
        )
    weight = None if norm.weight is None else upcast(norm.weight[...])
    if weight is not None and isinstance(norm, RMSNorm) and norm.offset:
        weight = weight + jnp.asarray(1, weight.dtype)
    bias = norm.bias if isinstance(norm, LayerNorm) else None
    return NormAtScale(scale, weight, None if bias is None else upcast(bias[...]), isinstance(norm, LayerNorm))


def norm_into(
    model: Any, acts: Activations, layer: int | None = None, *, mlp_input: bool = False, pos: Pos = None
) -> NormAtScale:
    """The norm that stands before attention of `layer`, before its MLP, or (None, or n_layers) before the unembedding.

    Needs `ln_final.scale`, `blocks.*.ln1.scale` or `blocks.*.ln2.scale`, where the model has such a norm.
    """
    inner = decoder(model)
    layer = up_to(inner, layer, mlp_input)
    norm, address = _norm_into(inner, layer, mlp_input)
    if norm is None and layer < inner.config.n_layers and inner.config.norm != "none":
        raise UserError(
            f"nothing norms what {'the MLP' if mlp_input else 'attention'} reads in this model: its norms stand "
            f"{inner.config.norm_places} attention and MLP. Take the stack as it is"
        )
    return frozen(norm, None if norm is None else upcast(at_pos(acts[address], pos, 1)))


def norm_weight(model: Any, layer: int | None = None, *, mlp_input: bool = False) -> Float[Array, "d_model"] | None:
    """The weight (for Gemma's norms, 1 + weight) of the norm that `norm_into` gives; None where it has none."""
    inner = decoder(model)
    norm, _ = _norm_into(inner, up_to(inner, layer, mlp_input), mlp_input)
    return frozen(norm, None).weight


def norms_after(model: Any, acts: Activations, name: str, n: int, pos: Pos) -> NormAtScale | None:
    """The norms `ln1_post` or `ln2_post` of the first `n` layers, fields `[layer, ...]`; None where there are none."""
    stacked = by_layer(model, lambda block: getattr(block, name))
    if stacked is None or not n:
        return None
    return frozen(jax.tree.map(lambda leaf: leaf[:n], stacked), at_pos(layers(acts, f"{name}.scale", n), pos, 2))


def apply_ln_to_stack(
    model: Any,
    acts: Activations,
    stack: Parts | Float[Array, "part *batch_pos d_model"],
    layer: int | None = None,
    *,
    mlp_input: bool = False,
    pos: Pos = None,
) -> Any:
    """Parts of the stream as they come out of the norm that reads it, each divided by the scale of the whole stream.

    Linear: the rows of a decomposition still add up, to the norm's output less its bias. The norm is the final one, or
    that of `layer`; the norm's weight and LayerNorm's centring are applied, so nothing need be folded (TransformerLens
    leaves the weight out, which is the same where it was folded). `stack` holds the positions `pos` already.
    Needs that norm's `scale`. To norm each row by its own scale instead, as lenses do, see `readout`.
    """
    norm = norm_into(model, acts, layer, mlp_input=mlp_input, pos=pos)
    return each(stack, norm.linear)


def up_to(model: Any, layer: int | None, mlp_input: bool = False) -> int:
    """`layer` with None read as n_layers, the stream before the unembedding; checked."""
    config = decoder(model).config
    layer = config.n_layers if layer is None else layer
    if not 0 <= layer <= config.n_layers:
        raise UserError(f"layer={layer}: from 0 to {config.n_layers} (None), the stream before that layer's attention")
    if mlp_input and (layer == config.n_layers or not config.d_mlp):
        raise UserError("mlp_input is of a layer that has an MLP: give layer, less than n_layers")
    return layer


def _norm_into(inner: Decoder, layer: int, mlp_input: bool) -> tuple[Any, str]:
    """The norm that reads the stream there, and the address of its scale."""
    if layer == inner.config.n_layers:
        return inner.ln_final, "ln_final.scale"
    # In a parallel block with one norm, the MLP reads through attention's.
    name = "ln2" if mlp_input and inner.config.parallel != "one norm" else "ln1"
    stacked = by_layer(inner, lambda block: getattr(block, name))
    norm = None if stacked is None else jax.tree.map(lambda leaf: leaf[layer], stacked)
    return norm, f"blocks.{layer}.{name}.scale"


def _centred(x: Array) -> Array:
    return x - jnp.mean(x, axis=-1, keepdims=True)
