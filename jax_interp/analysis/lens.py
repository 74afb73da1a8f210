"""Lenses: what the model would predict if it stopped at each layer.

The logit lens applies the final norm and the unembedding to the stream of each layer (nostalgebraist 2020). The tuned
lens first applies a learned affine map to the stream, one map for each layer (Belrose et al. 2023).

    parts = logit_lens(model, acts)
    lens = train_tuned_lens(TunedLensConfig(steps=400), model, batch_at)
    parts = tuned_lens(model, lens, acts)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.analysis.addresses import reads_activations
from jax_interp.analysis.parts import Parts, Pos, checked_mask
from jax_interp.analysis.readout import readout
from jax_interp.analysis.residual import accumulated_resid
from jax_interp.analysis.weights import decoder
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.objectives import kl_divergence, log_probabilities
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Activations, Model, read

Reduce = Callable[[Float[Array, "batch *pos vocab"]], Any]
"""A function of one layer's logits."""


def _identity(logits: Float[Array, "batch *pos vocab"]) -> Float[Array, "batch *pos vocab"]:
    return logits


@reads_activations(accumulated_resid)
def logit_lens(
    model: Model, acts: Activations, *, incl_mid: bool = False, pos: Pos = None, reduce: Reduce = _identity
) -> Parts:
    """The logits of the stream at each layer, `0_pre` to `final_post`. The last row has the model's logits.

    Args:
      model: a decoder, with or without surgery.
      acts: what `accumulated_resid` reads.
      incl_mid: add the points between attention and MLP.
      pos: the positions to use.
      reduce: a function of the logits of one layer, such as a token's rank or an entropy. Its results are returned
        instead of the logits, so only one layer's logits are in memory at a time.

    Returns:
      Logits, rows `[batch, *pos, vocab]`, or what `reduce` returns for them.

    Raises:
      UserError: a mid point is asked for and the model has none.
    """
    stack = accumulated_resid(model, acts, incl_mid=incl_mid, pos=pos)
    return Parts(jax.lax.map(lambda resid: reduce(readout(model, resid)), stack.values), stack.labels)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TunedLens:
    """One affine map for each layer. It maps the layer's input x to `x + x W + b`, in the basis of the last layer."""

    weight: Float[Array, "layer d_model d_model"]
    bias: Float[Array, "layer d_model"]

    def __call__(self, stack: Float[Array, "layer *batch_pos d_model"]) -> Float[Array, "layer *batch_pos d_model"]:
        """Apply the map of each layer to the input of this layer."""
        return jax.vmap(translate)(self, stack)


def translate(one: TunedLens, x: Float[Array, "*batch_pos d_model"]) -> Float[Array, "*batch_pos d_model"]:
    """Apply the map of one layer (a lens without its layer axis) to `x`."""
    return x + x @ one.weight + jnp.expand_dims(one.bias, range(x.ndim - 1))


def init_tuned_lens(model: Model) -> TunedLens:
    """A lens whose maps are all the identity (the logit lens). Its dtype is float32, or float64 for a float64 model."""
    config = decoder(model).config
    n, d = config.n_layers, config.d_model
    dtype = upcast(decoder(model).embed.weight[...]).dtype
    return TunedLens(jnp.zeros((n, d, d), dtype), jnp.zeros((n, d), dtype))


@reads_activations("blocks.*.resid_pre", "blocks.-1.resid_post")
def tuned_lens(
    model: Model, lens: TunedLens, acts: Activations, *, pos: Pos = None, reduce: Reduce = _identity
) -> Parts:
    """The logits of a tuned lens at each layer, `0_pre` to `final_post`. The last row has the model's logits.

    Args:
      model: a decoder, with or without surgery.
      lens: a lens that was trained for this model.
      acts: the activations `blocks.*.resid_pre` and `blocks.-1.resid_post`.
      pos: the positions to use.
      reduce: a function of each layer's logits, as in `logit_lens`.

    Returns:
      Logits, rows `[batch, *pos, vocab]`, or what `reduce` returns for them.

    Raises:
      UserError: the lens was trained for a model of another size.
    """
    stack = accumulated_resid(model, acts, pos=pos)
    if lens.bias.shape[0] != len(stack) - 1 or lens.bias.shape[1] != stack.values.shape[-1]:
        raise UserError(
            f"this lens has maps {lens.weight.shape}, the model {len(stack) - 1} layers of "
            f"{stack.values.shape[-1]}: it was trained for another model"
        )
    rows = jnp.concatenate([lens(stack.values[:-1]), stack.values[-1:]])
    return Parts(jax.lax.map(lambda resid: reduce(readout(model, resid)), rows), stack.labels)


def kl_by_layer(
    model: Model, lens: TunedLens, tokens: Int[Array, "batch pos"], keep: Bool[Array, "batch pos"] | None = None
) -> Float[Array, "layer"]:
    """`KL(model ‖ lens)` of the prediction at each layer. This is the loss of a tuned lens.

    The model runs with its surgeries. Only one layer's logits are in memory at a time, also in the backward pass.

    Args:
      model: a decoder, with or without surgery.
      lens: a tuned lens; `init_tuned_lens(model)` for the logit lens.
      tokens: token ids.
      keep: True at the positions that count; None: all.

    Returns:
      The mean over tokens for each layer, in nats.
    """
    counted = checked_mask(keep, tokens.shape)
    logits, acts = read(model, "blocks.*.resid_pre")(tokens)
    target = jax.lax.stop_gradient(log_probabilities(logits))
    weight = counted.astype(target.dtype)
    weight = weight / jnp.sum(weight)

    @jax.checkpoint
    def of_layer(one: TunedLens, resid: Float[Array, "batch pos d_model"]) -> Float[Array, ""]:
        prediction = log_probabilities(readout(model, translate(one, resid)))
        return jnp.sum(kl_divergence(target, prediction) * weight)

    stack = jax.lax.stop_gradient(upcast(acts["blocks.*.resid_pre"]))
    return jax.lax.map(lambda row: of_layer(*row), (lens, stack))
