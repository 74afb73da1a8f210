"""The capacity sweep: how many components are alive as there are more of them to be had.

A decomposition that finds what is in the network has as many alive at every C beyond that; one whose number grows with
C splits what it finds (VPD 2026: 0.5 to 4 times C, the number alive flat).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jax_interp.core.errors import UserError
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.metrics import alive
from jax_interp.decomposition.train import Trained, train_instances


@dataclasses.dataclass(frozen=True)
class Capacity:
    """One capacity: `factor` times the config's C, and of each run the number of components alive by matrix."""

    factor: float
    C: int | dict[str, int]
    alive: dict[str, Int[np.ndarray, "instance *layer"]]

    @property
    def total(self) -> Int[np.ndarray, " instance"]:
        """Over all matrices and layers, twins of tied ones included."""
        return np.sum([counts.reshape(len(counts), -1).sum(axis=1) for counts in self.alive.values()], axis=0)


def capacity_sweep(
    config: DecompositionConfig,
    model: Any,
    x: Array,
    *,
    sample: Callable[[Array], Any],
    factors: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    seeds: Sequence[int] = (0,),
    threshold: float = 0.1,
    run: Path | str | None = None,
    **options: Any,
) -> list[Capacity]:
    """Train at `factors` times the config's C (rounded, at least 1), every seed each time, and count the components
    whose importance is above `threshold` somewhere on `x`. As long as all runs together; each capacity compiles a
    program of its own. With `run=` each goes on in a directory of its own there, `C0.5`, `C1`, ...; `options` go to
    `train_instances`."""
    if not factors or min(factors) <= 0:
        raise UserError(f"factors={tuple(factors)}: what C is multiplied by, one number or more above 0")
    found = []
    for factor in factors:
        more = lambda C, factor=factor: max(round(C * factor), 1)
        C = more(config.C) if isinstance(config.C, int) else {name: more(count) for name, count in config.C.items()}
        place = None if run is None else Path(run) / f"C{factor:g}"
        runs = train_instances(
            dataclasses.replace(config, C=C), model, seeds=seeds, sample=sample, run=place, **options
        )
        found.append(Capacity(factor, C, alive_of(runs, x, threshold)))
    return found


def alive_of(runs: Trained, x: Array, threshold: float = 0.1) -> dict[str, Int[np.ndarray, "instance *layer"]]:
    """By matrix the number of components alive on `x` in each run of `train_instances`."""
    return {name: np.asarray(count) for name, count in _counts(runs, x, threshold).items()}


@jax.jit
def _counts(runs: Trained, x: Array, threshold: Any) -> dict[str, Array]:
    one = lambda trained: alive(trained.importance(x).lower, threshold)
    return {name: jnp.sum(on, axis=-1) for name, on in jax.lax.map(one, runs).items()}
