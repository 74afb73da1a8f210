"""Ablation grids: take the information out of every cell, by zeros, by the mean over a dataset, or by other prompts.

    ablate(model, contrast, "head_out", Zero())                         zeros
    ablate(model, contrast, "head_out", means)                          the mean over a dataset (`dataset_means`)
    ablate(model, contrast, "head_out", Resample(donor))                the value of another prompt

The clean prompts are run, so the numbers compare with `patch(..., direction="noise")`: near 1 the cell is not needed,
near 0 its loss costs as much as the corruption of the prompt. Zeros are far from what the model ever sees: prefer means
over a matched distribution, or resampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.sweeps.dataset_means import DatasetMeans
from jax_interp.circuits.sweeps.effects import Effects
from jax_interp.circuits.sweeps.grids import Grid, grid_of
from jax_interp.circuits.sweeps.interventions import Intervention, intervene
from jax_interp.circuits.sweeps.sweep import Pieces
from jax_interp.surgery import Each, Edit, Model, Replace, Zero, at


def ablate(
    model: Model,
    contrast: Contrast,
    grid: str | Grid,
    by: Callable[..., Any] | Each | DatasetMeans,
    *,
    groups: Sequence[Any] | None = None,
    only: Mapping[str, Sequence[int]] = {},
    pieces: Pieces = Pieces(),
) -> Effects:
    """Ablate every cell of a grid in the run of the clean prompts.

    Args:
      model: any model that has the value, under surgery or not.
      contrast: the prompts and the metric. The corrupted prompts only give the zero of `normalised`.
      grid: the name of a ready-made grid (`GRIDS`), or a `Grid` of any named value.
      by: what takes the place of the value: an edit (`Zero()`, `Resample(donor)`, `Mean()`, `Noise(key)`, `Each` of an
        edit with values per layer, or your own), or the means over a dataset.
      groups: for means with groups, the group of each prompt.
      only: for some axes, the entries that are ablated.
      pieces: memory and progress of the sweep.

    Returns:
      The metric in every cell.

    Raises:
      UserError: as in `patch`; or there is no mean for a token of the prompts.
      AddressError: the model has no such value.
    """
    grid = grid_of(grid)
    if isinstance(by, DatasetMeans):
        prompts, columns = contrast.clean.shape
        values = by.values(grid.address, (prompts, columns), mask=contrast.mask, groups=groups)
        fn: Any = Each(Replace(values)) if "layer" in grid.axes else Replace(values[0])
    else:
        edit = at(grid.address, by)  # a plain function becomes a pytree
        assert isinstance(edit, Edit)
        fn = edit.fn
    by_token = isinstance(by, (DatasetMeans, Zero))  # an edit of the user's may compare tokens
    return intervene(model, contrast, "noise", Intervention(grid, fn, only=only, by_token=by_token), pieces=pieces)
