"""The model's output and hidden activations under masks: six kinds of masks, and the worst masks an adversary finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.objectives import log_probabilities, masked_mean, negative_log_likelihood
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.losses.adversarial import PGDReconstruction
from jax_interp.decomposition.losses.base import LossInputs, distances
from jax_interp.decomposition.losses.reconstruction import hidden_errors
from jax_interp.decomposition.masks import Mask, Sampling, masked_output, masks_from_values, stochastic_masks


@register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskReport:
    """Errors for each kind of mask (see `evaluation_masks`).

    error: the distance from the target's output, KL or MSE as the settings say.
    error_unrecovered: the error divided by the error with zero masks.
    ce: for language models, the cross-entropy. The entry "target" is that of the target.
    ce_unrecovered: `(ce - ce_target) / (ce_zero - ce_target)`.

    The two shares are NaN where zero masks do no harm: there is nothing to recover.
    """

    error: dict[str, Float[Array, ""]]
    error_unrecovered: dict[str, Float[Array, ""]]
    ce: dict[str, Float[Array, ""]] | None = None
    ce_unrecovered: dict[str, Float[Array, ""]] | None = None


def evaluation_masks(
    key: Array, importance: PerMatrix, delta: bool, threshold: float | Array = 0.0, sampling: Sampling = "continuous"
) -> dict[str, dict[str, Mask]]:
    """The six kinds of masks of an evaluation.

    Args:
      key: random key.
      importance: lower importances.
      delta: whether stochastic masks include Δ, as in training. Δ is off in all other masks.
      threshold: "rounded" masks are 1 where the importance is above this, and 0 elsewhere.
      sampling: the distribution of "stochastic" masks.

    Returns:
      Masks by kind: "ci" (the importances), "unmasked" (all on), "stochastic", "random" (uniform), "rounded", "zero".
    """
    first, second = jax.random.split(key)
    ones = {name: jnp.ones_like(g) for name, g in importance.items()}
    keys = {name: jax.random.fold_in(second, i) for i, name in enumerate(importance)}
    random = {n: jax.random.uniform(keys[n], g.shape).astype(g.dtype) for n, g in importance.items()}
    return {
        "ci": masks_from_values(importance),
        "unmasked": masks_from_values(ones),
        "stochastic": stochastic_masks(first, importance, delta=delta, sampling=sampling),
        "random": masks_from_values(random),
        "rounded": masks_from_values({name: (g > threshold).astype(g.dtype) for name, g in importance.items()}),
        "zero": masks_from_values({name: jnp.zeros_like(g) for name, g in importance.items()}),
    }


def mask_report(
    inputs: LossInputs, key: Array, labels: Int[Array, "batch pos"] | None = None, threshold: float | Array = 0.0
) -> MaskReport:
    """Errors under six kinds of masks.

    Args:
      inputs: a batch, see `LossInputs`.
      key: random key of the masks.
      labels: for a language model, the next token of each position; negative where there is none. With labels the
        report has cross-entropies too.
      threshold: the threshold of the rounded masks.
    """
    error, ce = {}, {}
    settings = inputs.settings
    for kind, masks in evaluation_masks(key, inputs.lower, settings.delta, threshold, settings.sampling).items():
        output = masked_output(inputs.model, masks, *inputs.args)
        error[kind] = jnp.mean(distances(settings.compare, inputs.output, output))
        if labels is not None:
            ce[kind] = cross_entropy(output, labels)
    unrecovered = {kind: share(value, error["zero"]) for kind, value in error.items()}
    if labels is None:
        return MaskReport(error, unrecovered)
    ce["target"] = cross_entropy(inputs.output, labels)
    worst = ce["zero"] - ce["target"]
    ce_unrecovered = {kind: share(value - ce["target"], worst) for kind, value in ce.items() if kind != "target"}
    return MaskReport(error, unrecovered, ce, ce_unrecovered)


def share(part: Array, whole: Array) -> Array:
    """`part / whole`; NaN if the whole is not above 0, as for the error of an ablation that does no harm."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, jnp.ones_like(whole)), jnp.nan)


def cross_entropy(logits: Float[Array, "batch pos vocab"], labels: Int[Array, "batch pos"]) -> Float[Array, ""]:
    """The mean cross-entropy in nats over the positions whose label is not negative."""
    losses = negative_log_likelihood(log_probabilities(logits), jnp.maximum(labels, 0))
    return masked_mean(losses, labels >= 0)


def hidden_report(
    inputs: LossInputs, key: Array, relative: bool = True
) -> dict[str, dict[str, Float[Array, "*layer"]]]:
    """Errors of the outputs of matrices, for two kinds of masks ("stochastic", "ci"). See `hidden_errors`."""
    kinds = {"stochastic": inputs.stochastic_masks(key), "ci": masks_from_values(inputs.lower)}
    return {kind: hidden_errors(inputs, masks, relative) for kind, masks in kinds.items()}


def pgd_error(inputs: LossInputs, key: Array, attack: PGDReconstruction | None = None) -> Float[Array, ""]:
    """The error under a fresh adversary.

    Args:
      inputs: a batch, see `LossInputs`.
      key: random key of the initial sources.
      attack: the adversary. The default takes 20 steps of 0.1 from random sources shared across the batch (VPD 2026).
    """
    return (PGDReconstruction() if attack is None else attack)(inputs.stop_gradient(), key)


def pgd_curve(
    inputs: LossInputs, key: Array, steps: Sequence[int] = (20, 40, 80, 160, 320), travel: float = 2.0
) -> Float[Array, " count"]:
    """`pgd_error` for several numbers of steps. The step size is `travel` / steps.

    If a decomposition is faithful only under its training adversary, the error rises sharply with the number of steps.
    """
    return jnp.stack([pgd_error(inputs, key, PGDReconstruction(steps=n, step_size=travel / n)) for n in steps])
