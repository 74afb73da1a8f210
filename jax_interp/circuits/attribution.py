"""`attribute`: estimate the effect of patching every unit from a few backward passes, and check the estimates.

    nodes = make_nodes(model, contrast, "blocks.*.attn.z", per=("head", "pos"))
    found = attribute(model, contrast, nodes, check=20)
    print(found)                                  the largest units, and how well patching confirms them
    found.by_address()["blocks.*.attn.z"]         Labelled: prompt × layer × pos × head

An estimate is never better than its check. Estimates are good where the metric is nearly linear in the value (single
heads), and can be worse than nothing where it is not (the residual stream).
"""

from __future__ import annotations

import dataclasses
import html
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jax_interp.circuits.atp_star import AtPStar
from jax_interp.circuits.attribution_check import AttributionWarning, Check
from jax_interp.circuits.attribution_methods import Gradient, IntegratedGradients, Method
from jax_interp.circuits.contrast import Contrast, Direction, measure
from jax_interp.circuits.nodes import Other, direction_of, node_effects, other_values, swapped
from jax_interp.circuits.units import Nodes
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.processes import on_host
from jax_interp.surgery import depth_of
from jax_interp.surgery.contract import Model

METHODS: dict[str, Method] = {
    "gradient": Gradient(),
    "ig-inputs": IntegratedGradients("inputs"),
    "ig-activations": IntegratedGradients("activations"),
    "atp*": AtPStar(),
}
"""The methods by name, with their default settings."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """The estimated effect of patching each unit, for each prompt. `attribute` returns it.

    Attributes:
      nodes: the units.
      effects: the estimate of (metric with the unit patched) - (metric of the run), [prompt, unit]. Under `noise` a
        unit that supports the behaviour has a negative effect, under `denoise` a positive one. If the method has no
        sign, the estimates are magnitudes.
      run: the metric of each prompt without a patch.
      other: the metric of each prompt of the other run.
      method: how the effects were estimated.
      direction: which run was patched.
      check: estimates against real patches, if it was asked for.
    """

    nodes: Nodes
    effects: Float[np.ndarray, "prompt unit"]
    run: Float[np.ndarray, " prompt"]
    other: Float[np.ndarray, " prompt"]
    method: Method
    direction: Direction
    check: Check | None = None

    def by_address(self) -> dict[str, Labelled]:
        """The effects with named axes, for each address: prompt, then layer and the axes of the units."""
        return self.nodes.labelled(self.effects, "estimated effect")

    def mean(self) -> Float[np.ndarray, " unit"]:
        """The mean over the prompts."""
        return self.effects.mean(0, dtype=np.float64)

    def standard_error(self) -> Float[np.ndarray, " unit"]:
        """The standard error of the mean over the prompts. NaN for a single prompt."""
        n = len(self.effects)
        if n < 2:
            return np.full(self.nodes.size, np.nan)
        return self.effects.std(0, ddof=1, dtype=np.float64) / n**0.5

    def largest(self, n: int = 10) -> list[tuple[str, float, float]]:
        """The units of largest absolute mean: (name, mean, standard error), in descending order."""
        mean, error, names = self.mean(), self.standard_error(), self.nodes.names()
        order = np.argsort(-np.abs(mean), kind="stable")[:n]
        return [(names[i], float(mean[i]), float(error[i])) for i in order]

    def __str__(self) -> str:
        span = f"metric {self.run.mean():.4g} in the run that is patched, {self.other.mean():.4g} in the other"
        lines = [f"{self.nodes.size} units, {len(self.effects)} prompts, {self.direction}: {span}"]
        lines += [] if self.check is None else [str(self.check)]
        lines += ["largest estimated effects (mean over the prompts ± standard error):"]
        lines += [f"  {name}: {mean:+.4g} ± {error:.2g}" for name, mean, error in self.largest()]
        if self.check is None:
            lines += ["not checked: attribute(..., check=20) patches 20 largest and 20 random units for real"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        colour = "color:#b91c1c;font-weight:bold" if self.check is not None and self.check.is_low else ""
        return f'<pre style="{colour}">{html.escape(str(self))}</pre>'


def attribute(
    model: Model,
    contrast: Contrast,
    nodes: Nodes,
    method: Method | str = "gradient",
    *,
    direction: Direction = "noise",
    other: Other = "corrupted",
    check: int = 0,
    rows: int = 64,
) -> Attribution:
    """Estimate the effect of patching each unit alone.

    Args:
      model: any model that keeps the surgery contract.
      contrast: prompts and metric.
      nodes: the units.
      method: a `Method`, or the name of one with its default settings: gradient, ig-inputs, ig-activations, atp*.
      direction: noise: the clean run, with corrupted values. denoise: the corrupted run, with clean values. The
        gradient is that of the run that is patched, and the estimate is of (metric with the patch) - (metric of the
        run).
      other: what units are patched with, as in `node_metric`.
      check: how many of the largest units, and as many random ones, are patched for real. 0: none.
      rows: how many prompts run at once.

    Returns:
      The estimates. If the check finds that they do not agree with patching, a warning is given, and the printed
      result begins with it.

    Raises:
      UserError: an unknown method or direction, or units for which the method has no meaning.

    Example:
        found = attribute(model, contrast, nodes, IntegratedGradients("inputs", steps=5, rule="left"), check=20)
    """
    method = _method(method)
    method.check(nodes, depth_of(model))
    run = swapped(contrast) if direction_of(direction) == "denoise" else contrast
    how, given = (other, None) if isinstance(other, str) else ("given", other)
    parts = []
    for first in range(0, contrast.clean.shape[0], max(1, rows)):
        some = run.rows(slice(first, first + max(1, rows)))
        parts.append(_estimate(model, some, nodes, given, how=how, method=method))
    effects, own, others = (np.concatenate([on_host(part[i]) for part in parts]) for i in range(3))
    found = Attribution(nodes, effects, own, others, method, direction)
    return found if check == 0 else checked(model, contrast, found, check, other=other, rows=rows)


def checked(
    model: Model,
    contrast: Contrast,
    found: Attribution,
    n: int,
    *,
    other: Other = "corrupted",
    seed: int = 0,
    rows: int = 64,
) -> Attribution:
    """The attribution with a check: the `n` largest units and `n` random other ones are patched for real.

    Args:
      model: the model of the attribution.
      contrast: its prompts.
      found: the attribution.
      n: how many units of each kind. If there are no more than 2 n units, all are patched.
      other: what units are patched with: the same as in the attribution.
      seed: of the draw.
      rows: how many prompts run at once.
    """
    if n < 1:
        raise UserError(f"check={n}: give the number of units to patch, at least 1")
    mean = found.mean()
    order = np.argsort(-np.abs(mean), kind="stable")
    largest, rest = order[:n], order[n:]
    drawn = np.random.default_rng(seed).choice(rest, min(n, len(rest)), replace=False)
    units = np.concatenate([largest, drawn])
    effects = node_effects(model, contrast, found.nodes, units, direction=found.direction, other=other, rows=rows)
    effects = np.asarray(on_host(effects), np.float64)
    measured = (effects if found.method.signed else np.abs(effects)).mean(0)
    names = found.nodes.names()
    check = Check(
        names=tuple(names[i] for i in units),
        units=units,
        drawn=np.arange(len(units)) >= len(largest),
        estimated=mean[units],
        measured=measured,
        signed=found.method.signed,
    )
    if warning := check.warning():
        warnings.warn(warning, AttributionWarning, stacklevel=3)
    return dataclasses.replace(found, check=check)


@partial(jax.jit, static_argnames=("how", "method"))
def _estimate(
    model: Model, contrast: Contrast, nodes: Nodes, given: Mapping[str, Any] | None, *, how: Any, method: Method
) -> tuple[Array, Array, Array]:
    others = other_values(model, contrast, nodes, how if given is None else given)
    effects = method.estimate(model, contrast, nodes, others)
    return effects, measure(model, contrast.clean, contrast), measure(model, contrast.corrupted, contrast)


def _method(method: Method | str) -> Method:
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise UserError(f"method={method!r}: choose one of {', '.join(METHODS)}, or give a Method")
    return METHODS[method]
