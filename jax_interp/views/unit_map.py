"""Figures of effects: a heat map with labels on both axes, and estimates against measured effects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jax_interp.views.heatmap import diverging, shortened
from jax_interp.views.style import BLUE, GRID, INK, MUTED, ORANGE, styled


@styled
def unit_map(
    values: Float[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    quantity: str,
    marked: Sequence[bool] = (),
) -> Figure:
    """A heat map of effects. 0 is blank, positive numbers are blue, negative numbers are orange.

    Args:
      values: the numbers.
      rows: the label of each row.
      columns: the label of each column; tokens are shown with visible spaces.
      title: the heading.
      quantity: what the numbers are; the label of the colour bar.
      marked: which labels of columns are orange. Empty: none.
    """
    height, width = values.shape
    limit = max(float(np.nanmax(np.abs(values), initial=0.0)), 1e-12)
    size = (min(max(5.0, 0.24 * width + 2.6), 16.0), max(2.8, 0.21 * height + 1.5))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(np.arange(width + 1), np.arange(height + 1), values, cmap=diverging(),
                           norm=Normalize(-limit, limit), edgecolors=GRID, linewidth=0.4)  # fmt: skip
    axes.grid(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    short = [shortened(column) for column in columns]
    axes.set_xticks(np.arange(width) + 0.5, short, rotation=90 if max(map(len, short)) > 2 else 0)
    axes.set_yticks(np.arange(height) + 0.5, [shortened(row, 24) for row in rows], fontsize=7.5)
    for label, mark in zip(axes.get_xticklabels(), marked):
        if mark:
            label.set_color(ORANGE)
            label.set_fontweight("bold")
    for label in axes.get_xticklabels():
        label.set_fontfamily("DejaVu Sans Mono")
        label.set_fontsize(8)
    axes.set_title(title)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=max(8, 3 * size[1]))
    bar.set_label(quantity)
    bar.solids.set_rasterized(False)  # type: ignore[union-attr]  an image would not take the page's colours
    bar.outline.set_edgecolor(MUTED)  # type: ignore[operator]
    return figure


@styled
def estimates_plot(
    estimated: Float[np.ndarray, " unit"], measured: Float[np.ndarray, " unit"], drawn: Bool[np.ndarray, " unit"]
) -> Figure:
    """Measured effects against estimates, with the line where they are equal.

    Args:
      estimated: the estimates.
      measured: the effects of patching.
      drawn: which units were drawn at random.
    """
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    both = np.concatenate([estimated, measured])
    low, high = min(float(np.nanmin(both)), 0.0), max(float(np.nanmax(both)), 0.0)
    margin = 0.05 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle="--", label="estimate = effect")
    axes.scatter(estimated[~drawn], measured[~drawn], s=22, color=BLUE, label="largest estimates", linewidths=0)
    axes.scatter(estimated[drawn], measured[drawn], s=22, color=ORANGE, label="drawn at random", linewidths=0)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel("estimated effect")
    axes.set_ylabel("effect of patching")
    axes.legend(loc="best", labelcolor=INK)
    return figure
