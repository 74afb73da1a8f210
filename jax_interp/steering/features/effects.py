"""The effect of each latent on the likelihood of target texts: to first order for all latents, and measured for a few.

    effect(i)  =  log p(targets | steered with latent i alone)  -  log p(targets)

    to first order     Σ_t  g_t · (what the change of latent i writes at token t),    g_t = d log p / d value at token t

One backward pass gives the first order of all latents. It is the slope at the unsteered model, so it is wrong for large
strengths; measure the best few.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.layer import upcast
from jax_interp.core.processes import on_host
from jax_interp.steering.features.feature_steering import FeatureSteering, one_feature, some_features
from jax_interp.steering.features.resumed_run import ResumedRun, begin, resumable_layer
from jax_interp.steering.features.target_texts import TargetTexts, log_likelihood
from jax_interp.surgery import Activations, Model, grad_at, values_at
from jax_interp.surgery.sparse_coder import as_sparse_coder
from jax_interp.training.placement import automatic
from jax_interp.training.row_pieces import in_pieces

NAME = "effect on the log-likelihood (nats)"


def gradient_effects(
    model: Model,
    steering: FeatureSteering,
    targets: TargetTexts,
    strength: float = 1.0,
    *,
    batch: int = 16,
    at_once: int = 4096,
) -> Labelled:
    """The effect of each latent of `steering` alone on the log-likelihood of each text, to first order.

    Args:
      model: any causal model that keeps the contract of `jax_interp.surgery`; its output is logits.
      steering: the latents to compare, usually all: `steer_features(sae, address, range(n), highest)`.
      targets: the texts.
      strength: the strength of each latent, at all tokens.
      batch: the number of texts in one backward pass.
      at_once: the number of latents whose effects are computed at once.

    Returns:
      The effects, axes "text" and "feature".

    Raises:
      UserError: an effect is not finite, or the steering does not act at all tokens.
    """
    _check_everywhere(steering)
    features, activation = np.asarray(steering.features), np.asarray(steering.activation)
    found = []
    for first in range(0, len(targets), batch):
        rows = slice(first, first + batch)
        values, slopes = _slopes(model, _places(steering), targets.tokens[rows], targets.weight[rows])
        latents = None if steering.how == "add" else _encode(steering.dictionary, values[steering.reads])
        program = functools.partial(_first_order, steering, values, slopes, latents, jnp.float32(strength))
        found.append(in_pieces(program, (features, activation), at_once).T)
    return _labelled(np.concatenate(found), steering)


def measured_effects(
    model: Model,
    steering: FeatureSteering,
    targets: TargetTexts,
    strength: float = 1.0,
    *,
    batch: int = 16,
    at_once: int = 8,
) -> Labelled:
    """The effect of each latent of `steering` alone on the log-likelihood of each text, measured.

    Every latent costs one forward pass from the steered block on.

    Args:
      model: any causal model that keeps the contract of `jax_interp.surgery`; its output is logits.
      steering: the latents to measure.
      targets: the texts.
      strength: the strength of each latent, at all tokens.
      batch: the number of texts in one forward pass.
      at_once: the number of latents in one forward pass.

    Returns:
      The effects, axes "text" and "feature".

    Raises:
      UserError: an effect is not finite, or the steering does not act at all tokens.
    """
    _check_everywhere(steering)
    found = []
    layer = resumable_layer(model, some_features(steering, [0]).edits(strength),
                            targets.tokens[:batch])  # fmt: skip
    for first in range(0, len(targets), batch):
        rows = slice(first, first + batch)
        weight = jnp.asarray(targets.weight[rows])
        run, clean = _begin(model, targets.tokens[rows], weight, layer)
        program = functools.partial(_measured, model, steering, run, weight, clean, jnp.float32(strength))
        found.append(in_pieces(program, (np.asarray(steering.features), np.asarray(steering.activation)), at_once).T)
    return _labelled(np.concatenate(found), steering)


def means_by_group(effects: Labelled, targets: TargetTexts) -> Labelled:
    """The mean effect over the texts of each group: axes "group" and "feature".

    A latent that acts in one template only has a mean over all texts that hides this. So look at every group, or rank
    by the mean over groups, in which each template counts the same.
    """
    names = targets.groups or ("all texts",) * len(targets)
    groups = sorted(set(names))
    means = [effects.values[[name == group for name in names]].mean(axis=0) for group in groups]
    return Labelled(np.stack(means), {"group": groups, "feature": effects.axes["feature"]}, effects.name)


@functools.partial(jax.jit, static_argnums=1)
@automatic
def _slopes(
    model: Model, places: tuple[str, tuple[str, ...]], tokens: Array, weight: Array
) -> tuple[Activations, Activations]:
    """(the values that are read and written, the gradients at those that are written)."""
    reads, writes = places
    metric = lambda logits: jnp.sum(log_likelihood(logits, tokens, weight))
    _, slopes = grad_at(model, *writes)(metric)(tokens)
    return values_at(model, *dict.fromkeys((reads, *writes)))(tokens), slopes


@jax.jit
@automatic
def _encode(dictionary: object, x: Array) -> Float[Array, "text pos feature"]:
    return as_sparse_coder(dictionary).encode(x)  # type: ignore[arg-type]


@jax.jit
@automatic
def _first_order(
    steering: FeatureSteering,
    values: Activations,
    slopes: Activations,
    latents: Float[Array, "text pos feature"] | None,
    strength: Float[Array, ""],
    features: Int32[Array, " chosen"],
    activation: Float[Array, " chosen"],
) -> Float[Array, "chosen text"]:
    coder, n_tokens = as_sparse_coder(steering.dictionary), values[steering.writes[0]].shape[:2]
    g = jnp.concatenate([upcast(slopes[name]).reshape(*n_tokens, -1) for name in steering.writes], axis=-1)
    change = jnp.broadcast_to(strength * activation[None, None], (*n_tokens, len(features)))
    if latents is not None:
        change = change - latents[..., features].astype(change.dtype)
        change = change if steering.how == "clamp" else jnp.maximum(change, 0.0)
    x = values[steering.reads] if steering.writes == (steering.reads,) else None
    _, transposed = jax.vjp(lambda change: coder.written(x, features, change), change)
    return jnp.sum(change * transposed(g.astype(jax.eval_shape(coder.written, x, features, change).dtype))[0], axis=1).T


@functools.partial(jax.jit, static_argnums=3)
@automatic
def _begin(model: Model, tokens: Array, weight: Array, layer: int | None) -> tuple[ResumedRun, Float[Array, " text"]]:
    run = begin(model, jnp.asarray(tokens), layer)
    return run, log_likelihood(run.output(model, ()), run.tokens, weight)


@jax.jit
@automatic
def _measured(
    model: Model,
    steering: FeatureSteering,
    run: ResumedRun,
    weight: Float[Array, "text pos"],
    clean: Float[Array, " text"],
    strength: Float[Array, ""],
    features: Int32[Array, " chosen"],
    activation: Float[Array, " chosen"],
) -> Float[Array, "chosen text"]:
    def of_one(feature: Array, activation: Array) -> Float[Array, " text"]:
        edits = one_feature(steering, feature, activation).edits(strength)
        return log_likelihood(run.output(model, edits), run.tokens, weight) - clean

    return jax.vmap(of_one)(features, activation)


def _places(steering: FeatureSteering) -> tuple[str, tuple[str, ...]]:
    """The addresses that are read and written; the first one is not needed where several values are read."""
    return (steering.reads if steering.how != "add" or steering.writes == (steering.reads,) else steering.writes[0],
            steering.writes)  # fmt: skip


def _check_everywhere(steering: FeatureSteering) -> None:
    if not steering.everywhere:
        raise UserError(
            "effects of latents are those of steering all tokens: give a steering without pos=, where=, tokens="
        )


def _labelled(values: np.ndarray, steering: FeatureSteering) -> Labelled:
    if not np.isfinite(values).all():
        raise UserError("some effects are not finite: try float32, or a smaller strength")
    axes = {"text": range(len(values)), "feature": on_host(steering.features).tolist()}
    return Labelled(values, axes, NAME)
