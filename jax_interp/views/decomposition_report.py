"""The page of a decomposition: its components, its errors, and whether its assumption of linearity holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jax_interp.views import component_cards
from jax_interp.views.page import render_page
from jax_interp.views.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    canvas,
    fading,
    legend_beside,
    logarithmic,
    styled,
    svg,
)

COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, MUTED)


def render(
    result: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    name: str,
    shown: Mapping[str, Any] | None = None,
) -> str:
    """Render the page as one self-contained HTML document. All text is escaped.

    Args:
      result: the content of `evaluation.json`.
      records: the records of the metrics log.
      name: the heading of the page.
      shown: the components of largest importance, in the form that `component_cards` describes. None: no cards.
    """
    figures = {}
    if records:
        figures["losses"] = svg(losses(records), "losses by step")
    if "probe" in result:
        figures["probe"] = svg(importance_map(result["probe"]), "importance of each component on one-hot probes")
    figures["spectrum"] = svg(spectrum(result["spectrum"]), "mean importances in descending order")
    figures["pgd"] = svg(adversary(result), "error along the adversary's steps")
    cards = None if shown is None else component_cards.prepared(shown)
    return render_page("decomposition_report.html.j2", result=result, figures=figures, name=name, shown=cards)


@styled
def losses(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Every loss of the log against the step, on a logarithmic scale. The dashed line is their weighted sum.

    If the log has L0, it is drawn in a second plot.
    """
    steps = [record["step"] for record in records]
    with_l0 = any("l0" in record for record in records)
    figure, (left, *right) = canvas(10, 3.0, 1 + with_l0, width_ratios=[1.6, 1][: 1 + with_l0])
    names = [n for n in records[-1] if n not in ("step", "l0", "loss") and isinstance(records[-1][n], float)]
    lines = [(name, name, color, "-") for name, color in zip(names, COLORS * 3)]
    for name, label, color, dash in [*lines, ("loss", "weighted sum", INK, "--")]:
        values = np.array([record.get(name, np.nan) for record in records], float)
        left.plot(steps, np.where(values > 0, values, np.nan), color=color, lw=1.4, ls=dash, label=label)
    logarithmic(left, "y")
    left.set(title="Losses, unweighted, and their weighted sum", xlabel="step")
    legend_beside(left)
    for axes in right:
        axes.plot(steps, [record.get("l0", np.nan) for record in records], color=GREEN, lw=1.4)
        axes.set(title="Important components per row", xlabel="step")
        axes.set_ylim(0, None)
    return figure


@styled
def importance_map(probe: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Importances on one-hot inputs. Rows are features. Columns are components, sorted by their strongest feature."""
    figure, axes = canvas(10, 3.0, len(probe))
    for ax, (name, rows) in zip(axes, probe.items()):
        values = np.asarray(rows, float)
        order = np.lexsort((-values.max(axis=0), np.where(values.max(axis=0) > 0.1, values.argmax(axis=0), 10**6)))
        shown = values[:, order[: max(values.shape[0] + 5, 10)]]
        ax.pcolormesh(shown, cmap=fading(BLUE), vmin=0, vmax=1)
        ax.invert_yaxis()
        ax.grid(False)
        ax.set(title=name, xlabel="component", ylabel="feature that is on")
    return figure


@styled
def spectrum(values: Mapping[str, Any]) -> Figure:
    """The mean importance of each component, sorted, on a logarithmic scale."""
    figure, (axes,) = canvas(7.5, 3.0)
    for (name, rows), color in zip(values.items(), COLORS * 20):
        for i, row in enumerate(np.atleast_2d(np.asarray(rows, float))):
            axes.plot(np.arange(1, len(row) + 1), np.maximum(row, 1e-7), color=color, lw=1.3, label=None if i else name)
    logarithmic(axes, "y")
    axes.set(title="Mean importance, sorted", xlabel="component")
    if len(values) <= 12:
        legend_beside(axes)
    return figure


@styled
def adversary(result: Mapping[str, Any]) -> Figure:
    """The error under adversarial masks, against the number of steps of the adversary.

    Dashed lines are the errors under other masks.
    """
    figure, (axes,) = canvas(7.5, 3.0)
    steps = [int(n) for n in result["pgd"]]
    axes.plot(steps, list(result["pgd"].values()), color=RED, lw=1.6, marker="o", ms=3, label="adversarial")
    for kind, color in (("stochastic", BLUE), ("ci", GREEN), ("unmasked", ORANGE)):
        axes.axhline(result["error"][kind], color=color, lw=1.0, ls="--", label=kind)
    logarithmic(axes, "y")
    axes.set(title="Error under masks", xlabel="steps of the adversary, shared across the batch")
    legend_beside(axes)
    return figure
