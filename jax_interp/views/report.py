"""The page of the demo: the training, evaluation and use of a dictionary, as one self-contained HTML file.

Figures are inline SVG. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax_interp.views import curves, heatmap, probabilities
from jax_interp.views.page import render_page
from jax_interp.views.style import svg


def render(results: Mapping[str, Any], evaluation_rows: Sequence[tuple[str, str, str]]) -> str:
    """Render the page as one HTML document.

    Args:
      results: the content of the demo's `results.json`: "model", "dictionary", "evaluation", "features",
        "intervention", "patching" and "provenance".
      evaluation_rows: triples (quantity, number, meaning), as `tables.evaluation_rows` returns them.
    """
    dictionary, patched, changed = results["dictionary"], results["patching"], results["intervention"]
    figures = {
        "training": svg(curves.training_curves(dictionary["records"], dictionary["k"]), "training curves"),
        "density": svg(curves.density_histogram(results["evaluation"]["density"]), "histogram of feature densities"),
        "positions": svg(curves.loss_by_position(results["evaluation"]["cross_entropy"]), "loss by position"),
        "probabilities": svg(
            probabilities.next_token_bars(changed["probabilities"], variant_labels(changed)),
            "probabilities of the next token",
        ),
        "patching": svg(
            heatmap.patching_map(
                {patched["titles"][name]: panel for name, panel in patched["panels"].items()},
                patched["corrupted_tokens"],
                patched["clean_tokens"],
                "clean answer recovered",
            ),
            "patching by layer and position",
        ),
    }
    return render_page("report.html.j2", **results, figures=figures, evaluation_rows=evaluation_rows)


def variant_labels(changed: Mapping[str, Any]) -> dict[str, str]:
    """The labels of the variants in a legend."""
    return {"clean": "unchanged", "ablated": "feature ablated", "clamped": f"feature clamped to {changed['value']:.3g}"}
