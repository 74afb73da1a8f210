"""Statistics of neurons: of their weights, and of their activations.

Weights are multiplied by the weights of the norms next to them, and centred over d_model if a LayerNorm subtracts the
mean. You do not need to fold norms first.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.analysis.addresses import reads_activations
from jax_interp.analysis.norm_at_scale import NormAtScale, norm_weight
from jax_interp.analysis.parts import checked_mask
from jax_interp.analysis.weights import W_U, W_gate, W_in, W_out, by_layer, with_dense_mlps
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Activations, Model


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NeuronStatistics:
    """Statistics of every neuron's weights.

    `logit_*` are moments over the vocabulary of `cos(w_out, w_U[token])`. This is the logit that the neuron gives to
    each token, divided by both norms. A neuron that promotes a few tokens has large skew and kurtosis (Gurnee et al.
    2024). A neuron that does not change the differences between tokens has almost no variance.

    Entropy neurons (Stolfo et al. 2024) have a large `out_norm` and a small `logit_variance`, in the last layers. They
    write where the unembedding is small (`null_fraction` near 1), and act through the scale of the final norm.
    """

    in_norm: Float[Array, "layer neuron"]
    """The norm of the input weights."""
    gate_norm: Float[Array, "layer neuron"] | None
    """The norm of the gate's weights; None if MLPs are not gated."""
    out_norm: Float[Array, "layer neuron"]
    """The norm of the output weights."""
    in_out_cosine: Float[Array, "layer neuron"]
    """Positive if a neuron strengthens the direction that it reads, negative if it erases this direction."""
    logit_variance: Float[Array, "layer neuron"]
    logit_skew: Float[Array, "layer neuron"]
    """Third standardised moment: 0 for a symmetric distribution."""
    logit_kurtosis: Float[Array, "layer neuron"]
    """Fourth standardised moment: 3 for a normal distribution."""
    null_fraction: Float[Array, "layer neuron"]
    """The share of the output's norm in the `null_dims` directions where the unembedding is smallest."""


def neuron_statistics(model: Model, *, null_dims: int | None = None) -> NeuronStatistics:
    """Statistics of the weights of all neurons.

    Args:
      model: a decoder, with or without surgery.
      null_dims: the number of directions in the null space of the unembedding; default d_model / 64 (12 in GPT-2).

    Returns:
      The statistics. Tokens whose unembedding is zero, as in a padded vocabulary, are left out. A neuron without output
      weights has NaN where its direction is needed.

    Raises:
      UserError: the model has no MLPs, or mixtures of experts; or `null_dims` is not from 1 to d_model.
    """
    config = with_dense_mlps(model, "neuron statistics").config
    null_dims = max(config.d_model // 64, 1) if null_dims is None else null_dims
    if not 1 <= null_dims <= config.d_model:
        raise UserError(f"null_dims={null_dims}: from 1 to d_model={config.d_model}")
    centred = config.norm == "layernorm"
    before = by_layer(model, lambda block: block.ln1 if config.parallel == "one norm" else block.ln2)
    after = by_layer(model, lambda block: block.ln2_post)

    def read_by(weight: Float[Array, "layer d_model neuron"]) -> Float[Array, "layer neuron d_model"]:
        rows = jnp.swapaxes(upcast(weight), 1, 2)
        return (
            rows if before is None else jax.vmap(lambda norm, x: NormAtScale.of(norm, None).transpose(x))(before, rows)
        )

    into = read_by(W_in(model))
    out = upcast(W_out(model))
    if after is not None:
        out = jax.vmap(lambda norm, x: NormAtScale.of(norm, None).linear(x))(after, out)
    out = out - jnp.mean(out, axis=-1, keepdims=True) if centred else out

    tokens = upcast(W_U(model)).T
    weight = norm_weight(model)
    tokens = tokens if weight is None else tokens * weight[None]
    tokens = tokens - jnp.mean(tokens, axis=-1, keepdims=True) if centred else tokens
    _, basis = jnp.linalg.eigh(tokens.T @ tokens)  # ascending
    null = basis[:, :null_dims]
    size = jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    tokens = tokens / jnp.where(size > 0, size, jnp.ones_like(size))
    has_direction = (size[:, 0] > 0).astype(tokens.dtype)
    share = has_direction / jnp.sum(has_direction)
    out_norm = jnp.linalg.norm(out, axis=-1)

    def moments(w: Float[Array, "d_model"]) -> tuple[Array, Array, Array]:
        return central_moments(tokens @ (w / jnp.linalg.norm(w)), share)

    flat = out.reshape(-1, out.shape[-1])
    found = jax.lax.map(moments, flat, batch_size=256)
    variance, skew, kurtosis = (moment.reshape(out.shape[:2]) for moment in found)
    gate = jnp.linalg.norm(read_by(W_gate(model)), axis=-1) if config.gated_mlp else None
    in_norm = jnp.linalg.norm(into, axis=-1)
    cosine = jnp.sum(into * out, axis=-1) / (in_norm * out_norm)
    null_fraction = jnp.linalg.norm(jnp.einsum("lnd,dk->lnk", out, null), axis=-1) / out_norm
    return NeuronStatistics(in_norm, gate, out_norm, cosine, variance, skew, kurtosis, null_fraction)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Statistics of every neuron's activation over tokens."""

    mean: Float[Array, "layer neuron"]
    variance: Float[Array, "layer neuron"]
    skew: Float[Array, "layer neuron"]
    kurtosis: Float[Array, "layer neuron"]
    rate: Float[Array, "layer neuron"] | None
    """The share of tokens at which the pre-activation is positive; None if it was not read."""


@reads_activations("blocks.*.mlp.pre", "blocks.*.mlp.post")
def activation_statistics(acts: Activations, *, mask: Bool[Array, "batch pos"] | None = None) -> ActivationStatistics:
    """How often and how strongly neurons fire.

    Args:
      acts: the activations `blocks.*.mlp.post`; and `blocks.*.mlp.pre` for the rate.
      mask: True at the tokens that count; None: all.
    """
    post = upcast(acts.stack("mlp.post"))
    counted = checked_mask(mask, post.shape[1:3]).astype(post.dtype)
    weight = counted.reshape(-1) / jnp.sum(counted)
    flat = jnp.moveaxis(post.reshape(post.shape[0], -1, post.shape[-1]), 1, 2)
    mean = jnp.sum(flat * weight[None, None], axis=-1)
    variance, skew, kurtosis = central_moments(flat, weight)
    rate = None
    if "blocks.*.mlp.pre" in acts:
        firing = (acts["blocks.*.mlp.pre"] > 0).astype(post.dtype)
        rate = jnp.einsum("lbpn,bp->ln", firing, counted / jnp.sum(counted))
    return ActivationStatistics(mean, variance, skew, kurtosis, rate)


def central_moments(
    x: Float[Array, "*rows n"], weight: Float[Array, "n"] | None = None
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"], Float[Array, "*rows"]]:
    """Variance, skew and kurtosis (3 for a normal distribution) over the last axis.

    Args:
      x: samples on the last axis.
      weight: the weight of each sample. They must sum to 1. None: equal weights.

    Returns:
      Variance, skew, kurtosis. For samples that are equal up to rounding, skew and kurtosis are NaN.
    """
    n = x.shape[-1]
    weight = jnp.full(n, 1 / n, x.dtype) if weight is None else weight
    weight = weight.reshape((1,) * (x.ndim - 1) + (n,))
    mean = jnp.sum(x * weight, axis=-1, keepdims=True)
    x = x - mean
    second, third, fourth = (jnp.sum(x**power * weight, axis=-1) for power in (2, 3, 4))
    is_spread = second > (8 * jnp.finfo(x.dtype).eps * mean[..., 0]) ** 2  # below it there is only rounding
    standardised = lambda moment, scale: jnp.where(is_spread, moment / scale, jnp.nan)
    return second, standardised(third, second**1.5), standardised(fourth, second**2)
