"""The page of an APD decomposition: its components, the error with only the top k components, and their linearity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jax_interp.views import component_cards
from jax_interp.views.decomposition_report import importance_map, losses
from jax_interp.views.page import render_page
from jax_interp.views.style import BLUE, GREEN, INK, MUTED, ORANGE, canvas, legend_beside, logarithmic, styled, svg

MAP = "Share of each feature's attributions"


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
      shown: the components that are kept most often, in the form that `component_cards` describes. None: no cards.
    """
    figures = {}
    if records:
        figures["losses"] = svg(losses(records), "losses by step")
    if "probe" in result:
        scores = np.asarray(result["probe"], float)
        total = np.maximum(scores.sum(axis=1, keepdims=True), 1e-30)
        figures["probe"] = svg(importance_map({MAP: (scores / total).tolist()}), "attributions on one-hot probes")
    figures["spectrum"] = svg(spectrum(result), "how often components are kept, and their singular values")
    if any("normalised" in row for row in result["linearity"]):
        figures["linearity"] = svg(linearity(result["linearity"]), "errors for different sets of kept components")
    cards = None if shown is None else component_cards.prepared(shown)
    return render_page("apd_report.html.j2", result=result, figures=figures, name=name, shown=cards)


@styled
def spectrum(result: Mapping[str, Any]) -> Figure:
    """The share of rows on which each component is kept, and the first singular values of the components.

    Components are in descending order of their share. Singular values are divided by the largest singular value of the
    same matrix in any component. A component of rank one has only one singular value.
    """
    rate = np.asarray(result["rate"], float)
    order, places = np.argsort(-rate, kind="stable"), np.arange(1, len(rate) + 1)
    figure, (first, *rest) = canvas(10, 3.0, 1 + len(result["singular_values"]))
    first.bar(places, rate[order], color=GREEN)
    first.set(title="Share of rows on which it is kept", xlabel="component, by share")
    for axes, (name, rows) in zip(rest, result["singular_values"].items()):
        values = np.asarray(rows, float)[order]
        values = values / max(values.max(), 1e-30)
        for column, label, color in zip(values.T, ("first", "second", "third"), (BLUE, ORANGE, MUTED)):
            axes.plot(places, column, "o", ms=3.5, color=color, label=label)
        axes.set(title=f"Singular values, {name}", xlabel="component, by share")
        axes.set_ylim(0, 1.05)
    legend_beside(rest[-1])
    for axes in (first, *rest):
        axes.locator_params(axis="x", integer=True)
    return figure


@styled
def linearity(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Errors divided by the squared norm of the output, one line each. A ring is the error of the oracle, if any."""
    shown = [row for row in rows if "normalised" in row][::-1]
    error = np.array([row["normalised"] for row in shown], float)
    excess = np.array([np.nan if row["excess"] is None else row["excess"] for row in shown], float)
    figure, (axes,) = canvas(8, 1.0 + 0.2 * len(shown))
    least = 1e-6  # errors of 0 are drawn at the edge, because a logarithmic axis has no zero
    places = np.arange(len(shown))
    axes.hlines(places, least, np.maximum(error, least), color=BLUE, lw=1.0, alpha=0.4)
    axes.plot(np.maximum(error, least), places, "o", ms=4.5, color=BLUE, label="this decomposition")
    if np.isfinite(excess).any():
        oracle = np.maximum(error - excess, least)
        axes.plot(oracle, places, "o", ms=6, mfc="none", color=INK, label="the features themselves as parts")
    logarithmic(axes, "x")
    axes.set_yticks(places, [row["name"] for row in shown])
    axes.set(title="Error / ‖f(x)‖², by kept components")
    figure.legend(loc="outside lower right", ncols=2)
    return figure
