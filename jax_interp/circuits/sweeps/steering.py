"""Steering grids: add vectors at every layer, with every coefficient, at all positions or at each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.circuits.contrast import Contrast, Direction
from jax_interp.circuits.sweeps.cells import Axis
from jax_interp.circuits.sweeps.effects import Effects
from jax_interp.circuits.sweeps.grids import Grid, grid_of
from jax_interp.circuits.sweeps.interventions import Intervention, intervene
from jax_interp.circuits.sweeps.sweep import Pieces
from jax_interp.core.errors import UserError
from jax_interp.surgery import Add, Each, Model


def steer(
    model: Model,
    contrast: Contrast,
    vectors: Float[Array, "vector d"] | Float[Array, "vector layer d"],
    coefficients: Sequence[float],
    grid: str | Grid = Grid("resid_post", ("layer",)),  # noqa: B008  it is frozen
    *,
    direction: Direction = "denoise",
    only: Mapping[str, Sequence[int]] = {},
    pieces: Pieces = Pieces(),
) -> Effects:
    """Add each vector, times each coefficient, in every cell of a grid.

    Args:
      model: any model that has the value, under surgery or not.
      contrast: the prompts and the metric. For prompts without a counterpart, give them as clean and corrupted.
      vectors: the vectors, each with the last axis of the value; or one for each layer.
      coefficients: the factors.
      grid: where they are added. Default: the residual stream after each layer, at all positions.
      direction: denoise: the corrupted prompts are steered. noise: the clean prompts.
      only: for some axes of the grid, the entries that are steered, such as `{"layer": [4, 5]}`.
      pieces: memory and progress of the sweep.

    Returns:
      The metric, with the axes "vector", "coefficient", those of the grid, and "prompt".

    Raises:
      UserError: the vectors do not fit, or as in `patch`.
      AddressError: the model has no such value.

    Example:
        effects = steer(model, contrast, (plus - minus)[None], [-8, -4, 0, 4, 8])
        effects.change().mean("prompt")       # [vector, coefficient, layer]
    """
    grid, vectors = grid_of(grid), jnp.asarray(vectors)
    if vectors.ndim not in (2, 3) or not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise UserError(f"vectors= has the shape {vectors.shape}: give [vector, d] or [vector, layer, d]")
    if vectors.ndim == 3 and "layer" not in grid.axes:
        raise UserError("vectors with a layer axis need a grid with the axis 'layer'")
    more = {
        "vector": Axis(vectors, range(len(vectors))),
        "coefficient": Axis(jnp.asarray(coefficients, jnp.float32), [float(c) for c in coefficients]),
    }
    return intervene(
        model, contrast, direction, Intervention(grid, (), _added, more, only, by_token=True), pieces=pieces
    )


def _added(_: Any, vector: jax.Array, coefficient: jax.Array) -> Any:
    return Add(vector, coefficient) if vector.ndim == 1 else Each(Add(vector, coefficient))
