"""AuxK: dead latents are trained to explain the error of the reconstruction (Gao et al. 2024, appendix A.2).

    aux = Σ ‖e - ê‖²  /  Σ ‖e - ē‖²                            e = stop_gradient(y - ŷ), ē: mean of e over the batch

ê is decoded (without b_dec) from the k_aux largest pre-activations of dead latents, after ReLU. If latents can be
negative (AbsTopK), these are the k_aux of largest absolute value, with their signs.

Differences from published code: OpenAI's code adds b_dec to both e and ê, which gives the same value. SAELens uses
pre-activations without ReLU and decodes with b_dec. dictionary_learning does the same as this file.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.activation import Activation
from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.term import TERMS, Term, coefficient_only
from jax_interp.dictionaries.sharding import feature_shards

Weights = tuple[Array, Array, Array]  # W_enc, b_enc, W_dec


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class AuxK(Term):
    """`coefficient` · aux.

    The term costs nothing while no latent is dead. Otherwise the cost grows with the number of dead latents. Under
    `vmap` it always costs as much as if all latents were dead.
    """

    entries_suffice = True
    cross_layer = "sources"
    coefficient: float = 1 / 32
    k: int | None = None
    """The number of dead latents used for each row. None: the largest power of two up to d / 2, where d is the width of
    one written value (as in published code for crosscoders)."""

    def check(self, activation: Activation) -> None:
        if not activation.uses_encoder:
            raise UserError(
                f"AuxK trains the encoder of dead latents, but {type(activation).__name__} encodes with the decoder: "
                "leave out AuxK, as in loss=(Reconstruction(),)"
            )

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        dictionary = forward.dictionary
        d, n_features = forward.y.shape[1] // dictionary.write_sites, dictionary.n_features
        k = default_k_aux(d, n_features) if self.k is None else self.k
        if not 0 < k <= n_features:
            raise UserError(f"AuxK(k={k}) of n_features={n_features}: k must be from 1 to n_features, or None")
        x = forward.x - dictionary.b_dec[None, :] if dictionary.centred else forward.x
        weights = (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec)
        error = jax.lax.stop_gradient(forward.error)
        aux: Any = aux_loss(weights, x, error, forward.dead, k, dictionary.activation.signed)
        return self.coefficient * aux


def default_k_aux(d: int, n_features: int) -> int:
    """The largest power of two up to d / 2 (Gao et al. 2024), at most the number of features."""
    return min(1 << max((d // 2).bit_length() - 1, 0), n_features)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def aux_loss(
    weights: Weights,
    x: Float[Array, "row d"],
    error: Float[Array, "row e"],
    dead: Bool[Array, " feature"],
    k_aux: int,
    signed: bool = False,
) -> Float[Array, ""]:
    """The fraction of `error` that the dead latents do not explain. 0 if no latent is dead.

    The dead latents are gathered into a smaller dictionary. Its width is k_aux, 4·k_aux or the number of features: the
    smallest width that holds all dead latents. The value does not depend on the width. It is differentiable with
    respect to `weights` and `x`.

    Args:
      weights: W_enc, b_enc, W_dec.
      x: the input of the encoder, centred if the dictionary is.
      error: the error to explain. It gets no gradient.
      dead: which features are dead.
      k_aux: the number of dead latents used for each row.
      signed: whether latents can be negative.
    """
    return _by_width(lambda of_width, *args: of_width(*args), weights, x, error, dead, k_aux, signed)


def _by_width(call, weights, x, error, dead, k_aux, signed) -> Any:
    n_dead, n_features = jnp.sum(dead), len(dead)
    # If features are sharded, dead latents are not gathered: this would move weights between devices.
    narrower = (w for w in (k_aux, 4 * k_aux) if w < n_features and feature_shards() == 1)
    widths = (*narrower, n_features)
    branch = jnp.where(n_dead == 0, 0, 1 + sum((n_dead > w).astype(jnp.int32) for w in widths[:-1]))
    losses = [_aux_of_none, *(partial(_aux_of_width, width=w, k_aux=k_aux, signed=signed) for w in widths)]
    return jax.lax.switch(branch, [partial(call, loss) for loss in losses], weights, x, error, dead)


def _aux_forward(weights, x, error, dead, k_aux, signed):
    # The gradient is taken inside the branch. With autodiff, every branch would return its intermediate values for the
    # backward pass, and a step without dead latents would fill them with zeros (a third of its time).
    gradient = lambda of_width, *args: jax.value_and_grad(of_width, argnums=(0, 1))(*args)
    return _by_width(gradient, weights, x, error, dead, k_aux, signed)


def _aux_backward(k_aux, signed, grads, g):
    weights, x = jax.tree.map(lambda a: a * g.astype(a.dtype), grads)
    return weights, x, None, None


aux_loss.defvjp(_aux_forward, _aux_backward)


def _aux_of_none(weights: Weights, x: Array, error: Array, dead: Array) -> Float[Array, ""]:
    return jnp.zeros((), x.dtype)


def _aux_of_width(
    weights: Weights,
    x: Float[Array, "row d"],
    error: Float[Array, "row e"],
    dead: Bool[Array, " feature"],
    width: int,
    k_aux: int,
    signed: bool,
) -> Float[Array, ""]:
    (W_enc, b_enc, W_dec), is_dead = weights, dead
    if width < len(dead):
        chosen = jnp.nonzero(dead, size=width, fill_value=0)[0]
        is_dead = jnp.arange(width) < jnp.sum(dead)
        W_enc, b_enc, W_dec = W_enc[:, chosen], b_enc[chosen], W_dec[chosen]
    pre = x @ W_enc + b_enc[None, :]
    mask = jnp.broadcast_to(is_dead, pre.shape)
    if width > k_aux:
        size = jax.lax.stop_gradient(jnp.abs(pre) if signed else pre)
        candidates = jnp.where(mask, size, jnp.asarray(-jnp.inf, pre.dtype))
        least = top_k(candidates, k_aux)[0][:, -1:]
        mask = mask & (candidates >= jnp.broadcast_to(least, pre.shape))
    latents = jnp.where(mask, pre if signed else jax.nn.relu(pre), jnp.zeros_like(pre))
    rest = error - latents @ W_dec
    centred = error - jnp.mean(error, axis=0, keepdims=True)
    scale = jnp.sum(centred * centred)
    return jnp.sum(rest * rest) / jnp.where(scale > 0, scale, jnp.ones_like(scale))
