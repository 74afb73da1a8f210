"""Several statistics of many units, in pieces of the units, so that memory does not grow with the number of units."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import ScoredBatch, Statistic
from jax_interp.surgery.taps import static


@register_dataclass
@dataclasses.dataclass(frozen=True)
class InPieces:
    """Statistics that treat each unit by itself, computed for `size` units at a time. The result is a dict.

    The scores of a batch are in memory once. What statistics need beside them (ranks, sorted scores, windows) is in
    memory for `size` units.

    Args:
      statistics: statistics by name. All arrays of their states must have the units as first axis: `TopWindows`,
        `UniformWindows`, `Activity`.
      size: the number of units in a piece.
    """

    statistics: Mapping[str, Statistic[Any, Any]]
    size: int = static(default=1024)

    def of(self, batch: ScoredBatch) -> dict[str, Any]:
        def some(scores: Array, activations: Array | None) -> dict[str, Any]:
            part = dataclasses.replace(batch, scores=scores, activations=activations)
            return {name: statistic.of(part) for name, statistic in self.statistics.items()}

        units = batch.scores.shape[0]
        if units <= self.size:
            return some(batch.scores, batch.activations)
        return jax.tree.map(
            lambda v: v.reshape(-1, *v.shape[2:])[:units],
            jax.lax.map(lambda both: some(*both), jax.tree.map(self._cut, (batch.scores, batch.activations))),
        )

    def _cut(self, values: Array) -> Array:
        """[unit, ...] as [piece, unit, ...], with zeros after the last unit."""
        missing = -len(values) % self.size
        return jnp.pad(values, ((0, missing), (0, 0), (0, 0))).reshape(-1, self.size, *values.shape[1:])

    def merge(self, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
        return {name: statistic.merge(first[name], second[name]) for name, statistic in self.statistics.items()}

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        return {name: statistic.result(state[name]) for name, statistic in self.statistics.items()}
