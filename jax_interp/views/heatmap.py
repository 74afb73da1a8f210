"""Heat maps over layers and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure

from jax_interp.core.terminal import printable
from jax_interp.views.style import BLUE, GRID, INK, MUTED, ORANGE, styled


@styled
def patching_map(
    panels: Mapping[str, Float[np.ndarray, "layer pos"]],
    tokens: Sequence[str],
    other: Sequence[str] | None = None,
    quantity: str = "answer recovered",
) -> Figure:
    """Heat maps of activation patching. Rows are layers, columns are positions; each patched value has one panel.

    0 is blank and 1 is full blue. Negative numbers are orange.

    Args:
      panels: title -> array `[layer, pos]`.
      tokens: the tokens of the patched run, one for each position.
      other: the tokens of the other run. Positions with different tokens are marked.
      quantity: the label of the colour bar.
    """
    values = {name: np.asarray(panel, float) for name, panel in panels.items()}
    limit = max(1.0, max(float(np.nanmax(np.abs(panel))) for panel in values.values()))
    norm, colors = Normalize(-limit, limit), diverging()
    layers, positions = next(iter(values.values())).shape
    height = 0.27 * layers * len(values) + 0.42 * len(values) + 1.35
    figure = Figure(figsize=(max(10.0, 0.27 * positions + 2.0), height), layout="constrained")
    rows = figure.subplots(len(values), 1, sharex=True, squeeze=False).ravel()
    meshes = []
    for axes, (name, panel) in zip(rows, values.items()):
        mesh = axes.pcolormesh(np.arange(positions + 1), np.arange(layers + 1), panel, cmap=colors, norm=norm,
                               edgecolors=GRID, linewidth=0.5)  # fmt: skip
        meshes.append(mesh)
        axes.grid(False)
        axes.invert_yaxis()
        axes.set_yticks(np.arange(layers) + 0.5, [str(i) for i in range(layers)])
        axes.tick_params(length=0)
        axes.set_title(name)
        axes.set_ylabel("layer")
        for spine in axes.spines.values():
            spine.set_visible(False)
    rows[-1].set_xticks(np.arange(positions) + 0.5, [shortened(token) for token in tokens], rotation=90)
    for label in rows[-1].get_xticklabels():
        label.set_fontfamily("DejaVu Sans Mono")
        label.set_fontsize(8)
    for i in range(positions):
        if other is not None and tokens[i] != other[i]:
            rows[-1].get_xticklabels()[i].set_color(ORANGE)
            rows[-1].get_xticklabels()[i].set_fontweight("bold")
    rows[-1].set_xlabel("token of the patched run, by position" + (" (orange: the prompts differ)" if other else ""))
    bar = figure.colorbar(meshes[0], ax=list(rows), shrink=0.9, aspect=30, pad=0.015)
    bar.set_label(quantity)
    bar.solids.set_rasterized(False)  # type: ignore[union-attr]  an image would not take the page's colours
    lowest = min(float(np.nanmin(panel)) for panel in values.values())
    bar.ax.set_ylim(min(lowest, -0.1), limit)
    bar.outline.set_edgecolor(MUTED)  # type: ignore[operator]
    bar.ax.tick_params(colors=MUTED, labelcolor=INK)
    return figure


@styled
def matrix_map(values: Float[np.ndarray, "row column"], rows: str, columns: str, quantity: str) -> Figure:
    """A heat map of a matrix. 0 is blank, positive numbers are blue, negative numbers are orange.

    Args:
      values: the numbers.
      rows: what a row is, for example "layer".
      columns: what a column is, for example "head".
      quantity: what the numbers are; the title.
    """
    height, width = values.shape
    limit = max(float(np.nanmax(np.abs(values), initial=0.0)), 1e-12)
    size = (max(4.0, 0.42 * width + 1.8, 0.075 * len(quantity) + 1.0), max(2.0, 0.34 * height + 1.2))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(np.arange(width + 1), np.arange(height + 1), values, cmap=diverging(),
                           norm=Normalize(-limit, limit), edgecolors=GRID, linewidth=0.5)  # fmt: skip
    axes.grid(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(width) + 0.5, [str(i) for i in range(width)])
    axes.set_yticks(np.arange(height) + 0.5, [str(i) for i in range(height)])
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)
    axes.set_title(quantity)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    lowest, highest = float(np.nanmin(values, initial=0.0)), float(np.nanmax(values, initial=0.0))
    if lowest < highest:
        bar.ax.set_ylim(lowest, highest)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def diverging() -> LinearSegmentedColormap:
    """A colormap that is orange below zero, transparent at zero, and blue above."""
    ends = [(0.0, (*to_rgb(ORANGE), 1.0)), (0.5, (*to_rgb(ORANGE), 0.0)), (0.5, (*to_rgb(BLUE), 0.0)),
            (1.0, (*to_rgb(BLUE), 1.0))]  # fmt: skip
    return LinearSegmentedColormap.from_list("diverging", ends, N=65)


def shortened(token: str, length: int = 11) -> str:
    """The label of a token on an axis, cut to at most `length` characters."""
    token = printable(token)
    return token if len(token) <= length else f"{token[: length - 1]}…"
