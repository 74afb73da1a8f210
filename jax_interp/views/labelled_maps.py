"""Heat maps of `Labelled` arrays: a matplotlib figure, and a page that shows the numbers under the pointer.

labelled_map(effects.normalised())                                 rows and columns named by the axes
labelled_page([LabelledMap(grid, "head output")], "Patching")      one HTML document, which fetches nothing
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.terminal import printable
from jax_interp.views.heatmap import diverging, shortened
from jax_interp.views.page import render_page
from jax_interp.views.style import GRID, styled

MAX_CELLS = 40_000
"""The largest number of cells of one map. A page with more would be slow."""


@dataclasses.dataclass(frozen=True)
class LabelledMap:
    """One heat map of a page.

    Args:
      values: the numbers. The last axis gives the columns, and all axes before it give the rows.
      title: the heading.
      error: the standard error of each number, shown under the pointer. None: not known.
      note: a line below the heading.
    """

    values: Labelled
    title: str
    error: Labelled | None = None
    note: str = ""

    def __post_init__(self):
        if self.error is not None and self.error.shape != self.values.shape:
            raise UserError(f"{self.title}: the errors have the shape {self.error.shape}, not {self.values.shape}")
        if not self.values.values.ndim >= 1 or self.values.values.size > MAX_CELLS:
            raise UserError(
                f"{self.title}: {self.values.shape} cannot be drawn; select a part of at least one axis and at most "
                f"{MAX_CELLS:,} cells"
            )


@styled
def labelled_map(grid: Labelled, title: str = "", limit: float | None = None) -> Figure:
    """A heat map. 0 is blank, positive numbers are blue, negative numbers are orange, and NaN is hatched.

    Args:
      grid: the numbers. The last axis gives the columns, and all axes before it give the rows.
      title: the heading. Default: the name of the values.
      limit: the number of full colour. Default: the largest absolute value.
    """
    LabelledMap(grid, title or grid.name)
    numbers, rows, columns = _as_matrix(grid)
    limit = limit or float(np.nanmax(np.abs(numbers), initial=0.0)) or 1.0
    height, width = numbers.shape
    size = (max(4.5, 0.27 * width + 2.4), max(2.2, 0.24 * height + 1.5))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    if np.isnan(numbers).any():
        axes.pcolor(np.where(np.isnan(numbers), 0.0, np.nan), hatch="///", alpha=0.0)
    mesh = axes.pcolormesh(np.arange(width + 1), np.arange(height + 1), np.ma.masked_invalid(numbers), cmap=diverging(),
                           norm=Normalize(-limit, limit), edgecolors=GRID, linewidth=0.5)  # fmt: skip
    axes.grid(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    turned = any(len(label) > 3 for label in columns)
    axes.set_xticks(np.arange(width) + 0.5, [shortened(label) for label in columns], rotation=90 if turned else 0)
    axes.set_yticks(np.arange(height) + 0.5, [shortened(label) for label in rows])
    for label in axes.get_xticklabels() if turned else ():
        label.set_fontfamily("DejaVu Sans Mono")
        label.set_fontsize(8)
    names = list(grid.axes)
    axes.set_xlabel(names[-1])
    axes.set_ylabel(", ".join(names[:-1]))
    axes.set_title(printable(title or grid.name))
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    lowest, highest = float(np.nanmin(numbers, initial=0.0)), float(np.nanmax(numbers, initial=0.0))
    if lowest < highest:
        bar.ax.set_ylim(lowest, highest)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def labelled_page(
    maps: Sequence[LabelledMap], title: str, lead: str = "", facts: Sequence[tuple[str, Any]] = ()
) -> str:
    """A page of heat maps. A line at the bottom shows the number, its error and its labels under the pointer.

    Args:
      maps: the maps.
      title: the heading of the page.
      lead: the text below it.
      facts: (name, value) pairs, shown as a table.

    Returns:
      The HTML document.
    """
    blocks = [
        {"title": one.title, "note": one.note, "names": list(one.values.axes), "table": _table(one, i)}
        for i, one in enumerate(maps)
    ]
    return render_page("labelled_maps.html.j2", title=title, lead=lead, facts=list(facts), maps=blocks)


def _as_matrix(grid: Labelled) -> tuple[np.ndarray, list[str], list[str]]:
    """(numbers [row, column], the labels of the rows, the labels of the columns)."""
    *outer, _ = grid.axes
    places = np.ndindex(*(len(grid.axes[name]) for name in outer))
    rows = [" ".join(_label(name, grid.axes[name][i]) for name, i in zip(outer, place)) for place in places]
    columns = [str(label) for label in list(grid.axes.values())[-1]]
    return np.asarray(grid.values, float).reshape(len(rows), len(columns)), rows, columns


def _label(name: str, label: Any) -> str:
    """The label of a row. A layer and a head are written as L3 and H5."""
    return f"{name[0].upper()}{label}" if name in ("layer", "head") and isinstance(label, int) else str(label)


def _table(one: LabelledMap, number: int) -> Markup:
    """The cells as an HTML table. A cell carries what the script shows for it."""
    values, rows, columns = _as_matrix(one.values)
    errors = None if one.error is None else np.asarray(one.error.values, float).reshape(values.shape)
    limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    head = Markup("").join(Markup("<th><span><bdi>{}</bdi></span></th>").format(printable(label)) for label in columns)
    lines = [Markup("<tr><td></td>{}</tr>").format(head)]
    for i, row in enumerate(rows):
        cells = []
        for j, value in enumerate(values[i].tolist()):
            error = None if errors is None or np.isnan(errors[i, j]) else float(errors[i, j])
            cells.append(_cell(value, error, limit))
        lines.append(Markup("<tr><th><bdi>{}</bdi></th>{}</tr>").format(printable(row), Markup("").join(cells)))
    return Markup('<table class="map" data-map="{}">{}</table>').format(number, Markup("").join(lines))


def _cell(value: float, error: float | None, limit: float) -> Markup:
    shown = "not a number" if np.isnan(value) else f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")
    if np.isnan(value):
        return Markup('<td class="none" data-v="{}"></td>').format(shown)
    colour = "var(--blue)" if value >= 0 else "var(--orange)"
    share = min(100.0, 100 * abs(value) / limit)
    style = f"background: color-mix(in srgb, {colour} {share:.0f}%, transparent)"
    return Markup('<td style="{}" data-v="{}"></td>').format(style, shown)
