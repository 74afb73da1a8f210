"""APD's losses (Braun et al. 2025): parameter match, top-k reconstruction of outputs and activations, simplicity."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.leaves import PyTree
from jax_interp.core.objectives import mean_squared_error
from jax_interp.decomposition.apd.attributions import attributions, batch_top_k, component_masks
from jax_interp.decomposition.apd.config import APDConfig
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.losses.faithfulness import faithfulness
from jax_interp.decomposition.masks import edits
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.surgery import edit, read


def apd_losses(config: APDConfig, model: Decomposed, x: PyTree) -> tuple[Float[Array, ""], dict[str, Array]]:
    """All losses of the config on one batch.

    Args:
      config: the config of the run.
      model: the decomposed model.
      x: a batch.

    Returns:
      The weighted sum, and each loss by name, without its weight.
    """
    scores = attributions(model, config.rank, x)
    found: dict[str, Array] = {"parameter_match": faithfulness(model)}
    mask = jnp.ones_like(scores)
    if config.top_k is not None:
        mask = jax.lax.stop_gradient(batch_top_k(scores, config.top_k)).astype(scores.dtype)
        if config.top_k_reconstruction or config.activation_reconstruction:
            found |= _reconstruction(config, model, mask, x)
    if config.simplicity:
        found["simplicity"] = schatten(model, mask, config.rank, config.p)
    if config.lp:
        found["lp"] = lp_attribution(scores, jax.eval_shape(model, x).shape[-1], config.lp_power)
    return sum((getattr(config, name) * value for name, value in found.items()), jnp.zeros(())), found


def _reconstruction(config: APDConfig, model: Decomposed, mask: Float[Array, "batch C"], x: PyTree) -> dict[str, Array]:
    """The mean squared errors of the hidden activations (if the config names some) and of the output under the mask."""
    found: dict[str, Array] = {}
    masked = edit(model, *edits(component_masks(model, mask, config.rank)))
    if config.activation_reconstruction:
        target, right = jax.lax.stop_gradient(read(model, *config.activations)(x))
        output, acts = read(masked, *config.activations)(x)
        sizes = [acts[name].size for name in acts]
        squares = sum(jnp.sum((acts[name] - right[name]) ** 2) for name in acts)
        found["activation_reconstruction"] = jnp.asarray(squares) / sum(sizes)
    else:
        target, output = jax.lax.stop_gradient(model(x)), masked(x)
    found["top_k_reconstruction"] = mean_squared_error(target, output, None)
    return found


def schatten(
    model: Decomposed, mask: Float[Array, "batch C"], rank: int, p: float, eps: float = 1e-16
) -> Float[Array, ""]:
    """Simplicity: `(1/N)(1/B) Σ_l Σ_{b,c,m} mask_{b,c} (S_A S_B + eps)^{p/2}`.

    S_A is the squared norm of the m-th column of A, and S_B that of the m-th row of B. If these columns and rows are
    singular vectors, the sum is the p-th power of the Schatten p-norm. N is the number of decomposed weights.

    Args:
      model: the decomposed model. V and U are called A and B in the paper.
      mask: the components that are kept on each row.
      rank: the number of neighbouring subcomponents in one component.
      p: the exponent.
      eps: keeps the gradient finite at 0.
    """
    total: Any = 0.0
    weights = 0
    for name in model.names:
        V, U = model.of(name).V, model.of(name).U
        size = jnp.sum(V * V, axis=-2) * jnp.sum(U * U, axis=-1)
        power = (size + eps) ** (p / 2)
        power = jnp.sum(power.reshape(*power.shape[:-1], -1, rank), axis=-1)
        total = total + (jnp.sum(power, axis=0) if is_stacked(name) else power)
        weights += model.weight(name).size
    return jnp.sum(jnp.mean(mask, axis=0) * total) / weights


def lp_attribution(attributions: Float[Array, "batch C"], outputs: int, p: float, eps: float = 1e-16) -> Array:
    """The minimality loss without a top k: `mean_b Σ_c (|A_c| / outputs + eps)^{p/2}`."""
    return jnp.mean(jnp.sum((jnp.abs(attributions) / outputs + eps) ** (p / 2), axis=-1))
