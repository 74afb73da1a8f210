"""Activation patching: put values of one run into another run, for every cell of a grid.

    contrast = make_contrast(clean, corrupted, LogitDifference(answers, others))
    patch(model, contrast, "resid_pre").normalised()                    [layer, pos]
    patch(model, contrast, "head_out", direction="noise").mean()        [layer, head]

With `direction="denoise"` the model runs the corrupted prompts with clean values: a cell near 1 suffices to restore the
clean behaviour. With "noise" it runs the clean prompts with corrupted values: a cell near 0 is needed for it. The two
answers differ where parts can replace each other (Meng et al. 2022, arXiv:2202.05262; Heimersheim & Nanda 2024,
arXiv:2404.15255).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jax_interp.circuits.contrast import Contrast, Direction, inputs_of
from jax_interp.circuits.sweeps.effects import Effects
from jax_interp.circuits.sweeps.grids import EVERY, Grid, axes_in, grid_of
from jax_interp.circuits.sweeps.interventions import Intervention, intervene
from jax_interp.circuits.sweeps.sweep import Pieces
from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.surgery import Each, Model, Replace, values_at


def patch(
    model: Model,
    contrast: Contrast,
    grid: str | Grid,
    *,
    direction: Direction = "denoise",
    only: Mapping[str, Sequence[int]] = {},
    pieces: Pieces = Pieces(),
) -> Effects:
    """Patch every cell of a grid.

    What a patch cannot change is not computed: the layers below it, positions before it, and logits that the metric
    does not read.

    Args:
      model: any model that has the value, under surgery or not.
      contrast: the prompts and the metric.
      grid: the name of a ready-made grid (`GRIDS`), or a `Grid` of any named value.
      direction: denoise: clean values go into the corrupted run. noise: the other way.
      only: for some axes, the entries that are patched, such as `{"layer": [8, 9], "pos": [-1]}`. Default: all.
      pieces: memory and progress of the sweep.

    Returns:
      The metric in every cell.

    Raises:
      UserError: there is no such grid, the value cannot be cut in this way, or a cell does not fit in memory.
      AddressError: the model has no such value.

    Example:
        effects = patch(model, contrast, "head_out_by_pos", only={"pos": [-1]})
        effects.normalised().largest(5)
    """
    grid = grid_of(grid)
    source, target = contrast.runs(direction)
    axes_in(model, grid, target, inputs_of(model, contrast), only)  # a wrong grid is refused before anything runs
    values = _values(model, contrast, source, address=grid.address)
    fn = Each(Replace(values)) if "layer" in grid.axes else Replace(values)
    first = _first_difference(source, target)
    intervention = Intervention(grid, fn, only=only, first=first, by_token=True)
    return intervene(model, contrast, direction, intervention, pieces=pieces)


def patch_every(
    model: Model,
    contrast: Contrast,
    grids: str | Sequence[str | Grid],
    *,
    direction: Direction = "denoise",
    pieces: Pieces = Pieces(),
) -> dict[str, Effects]:
    """Patch several grids.

    Args:
      model: the model.
      contrast: the prompts and the metric.
      grids: "blocks", "heads" or "heads_by_pos" (`EVERY`), or a list of grids.
      direction: as in `patch`.
      pieces: memory and progress of each sweep.

    Returns:
      The effects of each grid, by its name.
    """
    if isinstance(grids, str):
        if grids not in EVERY:
            raise UserError(f"there is no set of grids {grids!r}: choose from {', '.join(EVERY)}, or give a list")
        grids = EVERY[grids]
    name = lambda grid: grid if isinstance(grid, str) else grid.address
    return {name(grid): patch(model, contrast, grid, direction=direction, pieces=pieces) for grid in grids}


@jax.jit(static_argnames="address")
def _values(model: Model, contrast: Contrast, tokens: Array, *, address: str) -> PyTree:
    return values_at(model, address)(tokens, **inputs_of(model, contrast))[address]


def _first_difference(source: Array, target: Array) -> int:
    """The first column in which a prompt of the two runs differs. Before it, a causal model has equal values."""
    differs = on_host(jnp.any(source != target, axis=0))
    return int(differs.argmax()) if differs.any() else source.shape[1] - 1
