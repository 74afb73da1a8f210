"""The importance of units by the gradient of the metric with respect to their mask.

For heads this is the head importance score of Michel et al. 2019 (arXiv:1905.10650), which ACDC's authors call HISP:
the mean over the prompts of |∂m/∂ξ| at ξ = 1, where ξ mixes the unit's own value with the ablated one. With zero
ablation it is theirs; with corrupted values it is |attribution patching| prompt by prompt.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.discovery.units import Units
from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.surgery.contract import Model


def importance(
    model: Model, contrast: Contrast, units: Units, *, normalise: bool = False
) -> Float[np.ndarray, " unit"]:
    """The mean over the prompts of |∂ metric / ∂ mask| of each unit, at a mask of ones.

    Args:
      model: the model.
      contrast: the prompts and the metric.
      units: edges or nodes.
      normalise: divide the scores of each layer by their norm, as the paper does. Units are of one layer if their names
        name the same one ("blocks.3...."); needs nodes.

    Raises:
      UserError: a gradient is not finite, or a unit's layer is not known.
    """
    scores = np.asarray(on_host(_importance(model, contrast, units=units)), float)
    if not np.isfinite(scores).all():
        raise UserError("some gradients are not finite: the metric or an activation of this model is not finite")
    if not normalise:
        return scores
    layers = [name.split(".")[1] if name.startswith("blocks.") else None for name in units.names]
    if None in layers:
        raise UserError(f"normalise=True needs units of blocks; {units.names[layers.index(None)]!r} is in none")
    for layer in set(layers):
        of_layer = np.array([one == layer for one in layers])
        scores[of_layer] /= np.linalg.norm(scores[of_layer]) or 1.0
    return scores


@partial(jax.jit, static_argnames="units")
def _importance(model: Model, contrast: Contrast, *, units: Units) -> Float[Array, " unit"]:
    def of_prompt(total: Array, index: Array) -> tuple[Array, None]:
        rows = contrast.rows(index[None])
        ablated = units.ablated(model, rows)
        slope = jax.grad(lambda keep: jnp.sum(units.metric(model, rows, keep, ablated)))(jnp.ones(len(units)))
        return total + jnp.abs(slope), None

    n = contrast.clean.shape[0]
    return jax.lax.scan(of_prompt, jnp.zeros(len(units)), jnp.arange(n))[0] / n
