"""The page of the demo: the training, evaluation and use of a dictionary, as one self-contained HTML file.

Figures are inline SVG. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from jax_interp.views import curves, heatmap, probabilities, tokens
from jax_interp.views.style import svg


def environment() -> jinja2.Environment:
    """The templates of this folder. Autoescape is on, and an undefined name is an error."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("jax_interp.views", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["n"] = grouped
    templates.filters["sig"] = significant
    templates.filters["pct"] = percent
    templates.filters["duration"] = duration
    templates.filters["spaced"] = tokens.spaced
    templates.globals["coloured"] = tokens.coloured
    templates.globals["compared"] = tokens.compared
    return templates


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
    template = environment().get_template("report.html.j2")
    return template.render(**results, figures=figures, evaluation_rows=evaluation_rows)


def variant_labels(changed: Mapping[str, Any]) -> dict[str, str]:
    """The labels of the variants in a legend."""
    return {"clean": "unchanged", "ablated": "feature ablated", "clamped": f"feature clamped to {changed['value']:.3g}"}


def grouped(value: float) -> str:
    """A number with thousands separated: 4096 -> 4,096."""
    return f"{value:,}"


def significant(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits; a dash for None and NaN."""
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e+" in text else text


def percent(value: float | None) -> str:
    """A fraction as a percentage: 0.9731 -> 97.3 %. Percentages below 1 have two significant digits."""
    if value is None or value != value:
        return "–"
    hundred = 100 * value
    return f"{hundred:.1f} %" if abs(hundred) >= 1 or hundred == 0 else f"{hundred:.2g} %"


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds: 75 -> 1 min 15 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
