"""ACDC: remove units one at a time, from the logits back to the input (Conmy et al. 2023, arXiv:2304.14997).

For each unit in reverse order, the circuit without it is run. If the loss grows by less than the threshold τ, the unit
is removed for good, and the next one is judged without it. A unit that leads to nothing is removed without a run.

    found = acdc(model, contrast, units, thresholds=[0.001, 0.01, 0.1])
    found.keep                    [threshold, unit]
    found.scores                  the share of the thresholds at which a unit is kept: a score for a ROC curve

The published results change with the metric and the ablation (KL or task metric, corrupted values or zeros), so both
are arguments: `loss=` here, and `ablation=` of the units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.discovery.loss import Loss, loss_contrast
from jax_interp.circuits.discovery.units import Units
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.processes import on_host
from jax_interp.surgery.contract import Model

STEPS = 256
"""How many units are judged by one call of the compiled program. Ctrl-C acts between two calls."""


@dataclasses.dataclass(frozen=True, eq=False)
class Acdc:
    """The circuits of ACDC.

    Args:
      thresholds: τ of each circuit, in the unit of the loss.
      keep: [threshold, unit], the circuits.
      loss: [threshold, unit], the loss of the circuit after the unit was judged; units in their order in the model.
    """

    thresholds: tuple[float, ...]
    keep: Bool[np.ndarray, "threshold unit"]
    loss: Labelled

    @property
    def scores(self) -> Float[np.ndarray, " unit"]:
        """The share of the thresholds at which a unit is kept."""
        return self.keep.mean(axis=0)


def acdc(
    model: Model,
    contrast: Contrast,
    units: Units,
    thresholds: Sequence[float],
    *,
    loss: Literal["kl", "metric"] = "kl",
    together: bool = True,
) -> Acdc:
    """Run ACDC at several thresholds.

    The program compiles once. The thresholds are a mapped axis: each step runs one circuit for each threshold.

    Args:
      model: the model.
      contrast: the prompts and the metric.
      units: what is removed; edges as in the paper, or nodes.
      thresholds: τ of each run.
      loss: kl: KL(whole model ‖ circuit) at the position of the metric. metric: minus the mean of the metric.
      together: run all thresholds at once. False: one after the other. This needs less memory, and skips the run of
        units that lead to nothing.

    Raises:
      UserError: there is no threshold, a threshold is not finite, or a loss is NaN.
    """
    taus = np.asarray(thresholds, float)
    if taus.ndim != 1 or not taus.size or not np.isfinite(taus).all():
        raise UserError(f"thresholds={thresholds!r}: give one or more finite numbers")
    judged, sign = loss_contrast(model, contrast, loss)
    groups = [taus] if together else [taus[i : i + 1] for i in range(len(taus))]
    kept, losses = zip(*(_all_units(model, judged, units, jnp.asarray(group, jnp.float32), sign) for group in groups))
    loss_values = np.concatenate(losses)
    if not np.isfinite(loss_values).all():
        raise UserError("the loss of some circuits is not finite, so units cannot be judged by it")
    named = Labelled(loss_values, {"threshold": taus.tolist(), "unit": units.names}, f"loss ({loss})")
    return Acdc(tuple(taus.tolist()), np.concatenate(kept), named)


def _all_units(
    model: Model, contrast: Contrast, units: Units, taus: Array, sign: Loss
) -> tuple[np.ndarray, np.ndarray]:
    order = np.arange(len(units))[::-1]
    padded = np.concatenate([order, np.full(-len(order) % min(STEPS, len(order)), -1)]).reshape(
        -1, min(STEPS, len(order))
    )
    state, losses = _start(model, contrast, units, taus, sign), []
    for chunk in padded:
        state, loss = _judge(model, contrast, state, jnp.asarray(chunk, jnp.int32), taus, units=units, sign=sign)
        losses.append(on_host(loss))
    return on_host(state[0]) != 0, np.concatenate(losses, axis=1)[:, : len(units)][:, ::-1]


@partial(jax.jit, static_argnames=("units", "sign"))
def _start(model: Model, contrast: Contrast, units: Units, taus: Array, sign: Loss) -> tuple[Array, Array, Any]:
    ablated = units.ablated(model, contrast)
    keep = jnp.ones((taus.shape[0], len(units)), jnp.float32)
    whole = sign * jnp.mean(units.metric(model, contrast, keep[0], ablated))
    return keep, jnp.full(taus.shape, whole), ablated


@partial(jax.jit, static_argnames=("units", "sign"))
def _judge(
    model: Model, contrast: Contrast, state: tuple[Array, Array, Any], chunk: Int[Array, " step"], taus: Array,
    *, units: Units, sign: Loss,
) -> tuple[tuple[Array, Array, Any], Float[Array, "threshold step"]]:  # fmt: skip
    keep, current, ablated = state

    def step(carry: tuple[Array, Array], unit: Array, tau: Array) -> tuple[tuple[Array, Array], Array]:
        keep, current = carry
        without = keep.at[unit].set(0.0)
        useful = units.used(keep, unit)
        run = lambda: sign * jnp.mean(units.metric(model, contrast, without, ablated)).astype(current.dtype)
        loss = jax.lax.cond(useful & (unit >= 0), run, lambda: current)
        remove = (unit >= 0) & (~useful | (loss - current < tau))
        carry = jnp.where(remove, without, keep), jnp.where(remove, loss, current)
        return carry, jnp.where(jnp.isnan(loss), loss, carry[1])

    def one(keep: Array, current: Array, tau: Array) -> tuple[tuple[Array, Array], Array]:
        return jax.lax.scan(lambda carry, unit: step(carry, unit, tau), (keep, current), chunk)

    if taus.shape[0] == 1:  # without the mapped axis, `cond` skips the run
        (kept, loss), trace = one(keep[0], current[0], taus[0])
        return (kept[None], loss[None], ablated), trace[None]
    (kept, loss), trace = jax.vmap(one)(keep, current, taus)
    return (kept, loss, ablated), trace
