"""The capacity sweep: how many components are alive as C grows.

If a decomposition finds the mechanisms of a network, the number of live components is the same at every C that is large
enough. If the number grows with C, mechanisms are being split. (VPD 2026: constant from 0.5 to 4 times C.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
from jax_interp.decomposition.training_run import Sample
from jax_interp.surgery.contract import Model


@dataclasses.dataclass(frozen=True)
class Capacity:
    """The runs of one capacity.

    factor: the multiple of the config's C.
    C: the number of components.
    alive: for each matrix, the number of live components in each run.
    """

    factor: float
    C: int | dict[str, int]
    alive: dict[str, Int[np.ndarray, "instance *layer"]]

    @property
    def total(self) -> Int[np.ndarray, " instance"]:
        """The number of live components of each run, over all matrices and layers, twins included."""
        return np.sum([counts.reshape(len(counts), -1).sum(axis=1) for counts in self.alive.values()], axis=0)


def capacity_sweep(
    config: DecompositionConfig,
    model: Model,
    x: Array,
    *,
    sample: Sample,
    factors: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    seeds: Sequence[int] = (0,),
    threshold: float = 0.1,
    run: Path | str | None = None,
    **options: Any,
) -> list[Capacity]:
    """Train at several multiples of the config's C and count the live components.

    Each capacity compiles its own program.

    Args:
      config: the config of all runs, except for C.
      model: the target.
      x: inputs on which live components are counted.
      sample: `sample(key)` draws a batch.
      factors: multiples of C. Products are rounded, and are at least 1.
      seeds: the seeds to train at each capacity.
      threshold: a component is alive if its importance is above this on some row of `x`.
      run: a directory. Each capacity is saved in a subdirectory (`C0.5`, `C1`, ...).
      **options: other arguments of `train_instances`.

    Returns:
      One `Capacity` for each factor.

    Raises:
      UserError: `factors` is empty, or a factor is not above 0.
    """
    if not factors or min(factors) <= 0:
        raise UserError(f"factors={tuple(factors)}: C is multiplied by them; give at least one, each above 0")
    found = []
    for factor in factors:
        scale = lambda C, factor=factor: max(round(C * factor), 1)
        C = scale(config.C) if isinstance(config.C, int) else {name: scale(count) for name, count in config.C.items()}
        directory = None if run is None else Path(run) / f"C{factor:g}"
        runs = train_instances(
            dataclasses.replace(config, C=C), model, seeds=seeds, sample=sample, run=directory, **options
        )
        found.append(Capacity(factor, C, count_alive(runs, x, threshold)))
    return found


def count_alive(runs: Trained, x: Array, threshold: float = 0.1) -> dict[str, Int[np.ndarray, "instance *layer"]]:
    """The number of components of each matrix that are alive on `x`, for each run that `train_instances` returned."""
    return {name: np.asarray(count) for name, count in _counts(runs, x, threshold).items()}


@jax.jit
def _counts(runs: Trained, x: Array, threshold: float | Array) -> dict[str, Array]:
    one = lambda trained: alive(trained.importance(x).lower, threshold)
    return {name: jnp.sum(on, axis=-1) for name, on in jax.lax.map(one, runs).items()}
