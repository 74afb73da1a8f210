"""What the model does under masks that importances allow, and under some that they do not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.objectives import log_probabilities, masked_mean, negative_log_likelihood
from jax_interp.decomposition.importance.inputs import PerMatrix
from jax_interp.decomposition.losses.hidden import hidden_errors
from jax_interp.decomposition.losses.scene import Scene, distances
from jax_interp.decomposition.masks import Mask, Sampling, given, masked_output, stochastic


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskReport:
    """By kind of mask: `error` against the target's output (KL or MSE, as the scene compares); for language models
    `ce`, the cross-entropy, and `ce_unrecovered = (ce - ce_target) / (ce_zero - ce_target)`. `error_unrecovered` is the
    error over that of zero masks."""

    error: dict[str, Float[Array, ""]]
    error_unrecovered: dict[str, Float[Array, ""]]
    ce: dict[str, Float[Array, ""]] | None = None
    ce_unrecovered: dict[str, Float[Array, ""]] | None = None


def six_masks(
    key: Array, importance: PerMatrix, delta: bool, threshold: float | Array = 0.0, sampling: Sampling = "continuous"
) -> dict[str, dict[str, Mask]]:
    """Importances themselves, all on, stochastic by `sampling`, uniform at random, rounded at `threshold`, and all off.
    Δ is part of the stochastic masks only, as it is of training."""
    first, second = jax.random.split(key)
    ones = {name: jnp.ones_like(g) for name, g in importance.items()}
    keys = {name: jax.random.fold_in(second, i) for i, name in enumerate(importance)}
    return {
        "ci": given(importance),
        "unmasked": given(ones),
        "stochastic": stochastic(first, importance, delta=delta, sampling=sampling),
        "random": given({n: jax.random.uniform(keys[n], g.shape).astype(g.dtype) for n, g in importance.items()}),
        "rounded": given({name: (g > threshold).astype(g.dtype) for name, g in importance.items()}),
        "zero": given({name: jnp.zeros_like(g) for name, g in importance.items()}),
    }


def mask_report(
    scene: Scene, key: Array, labels: Int[Array, "batch pos"] | None = None, threshold: float | Array = 0.0
) -> MaskReport:
    """Errors under six masks. With `labels` (the next token of each position, negative where there is none) also
    cross-entropies."""
    error, ce = {}, {}
    for kind, masks in six_masks(key, scene.importance.lower, scene.delta, threshold, scene.sampling).items():
        output = masked_output(scene.model, masks, *scene.args)
        error[kind] = jnp.mean(distances(scene.compare, scene.output, output))
        if labels is not None:
            ce[kind] = cross_entropy(output, labels)
    share = {kind: value / error["zero"] for kind, value in error.items()}
    if labels is None:
        return MaskReport(error, share)
    ce["target"] = cross_entropy(scene.output, labels)
    worst = ce["zero"] - ce["target"]
    return MaskReport(error, share, ce, {k: (v - ce["target"]) / worst for k, v in ce.items() if k != "target"})


def cross_entropy(logits: Float[Array, "batch pos vocab"], labels: Int[Array, "batch pos"]) -> Float[Array, ""]:
    """Mean in nats over the positions whose label is not negative."""
    losses = negative_log_likelihood(log_probabilities(logits), jnp.maximum(labels, 0))
    return masked_mean(losses, labels >= 0)


def hidden_report(scene: Scene, key: Array, relative: bool = True) -> dict[str, dict[str, Float[Array, "*layer"]]]:
    """By kind of mask (stochastic, ci) and matrix: the error of its output, over its mean square where `relative`."""
    lower = scene.importance.lower
    kinds = {"stochastic": stochastic(key, lower, delta=scene.delta, sampling=scene.sampling), "ci": given(lower)}
    return {kind: hidden_errors(scene, masks, relative) for kind, masks in kinds.items()}
