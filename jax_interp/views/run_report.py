"""The page of a dictionary run as one HTML file: training curves, evaluation, and the Pareto plot of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jax_interp.views import curves
from jax_interp.views.page import render_page
from jax_interp.views.pareto import pareto
from jax_interp.views.style import svg


@dataclasses.dataclass(frozen=True)
class RunPage:
    """The content of the page of a run. A run of one dictionary has an evaluation; a sweep has members."""

    title: str
    description: str
    """One sentence below the title."""
    config: str
    """The text of the config file."""
    records: Sequence[Mapping[str, Any]]
    """The metrics log."""
    k: int | None = None
    """The number of active latents per token, if it is fixed."""
    sources: int = 1
    """The number of sources of a cross-layer dictionary."""
    evaluation: Mapping[str, Any] | None = None
    """The JSON values of the evaluation."""
    evaluation_rows: Sequence[tuple[str, str, str]] = ()
    """Triples (quantity, number, meaning), as `tables.evaluation_rows` returns them."""
    values: tuple[Sequence[str], Sequence[Sequence[str]]] = ((), ())
    """Headings and rows of the table of values, as `tables.value_rows` returns them."""
    features: bool = False
    """Whether `features.html` stands beside the page."""
    members: Sequence[Mapping[str, Any]] = ()
    """For each dictionary of a sweep {"name", "label", "series", "l0", "fvu", "recovered", "dead", "page"}. "page":
    whether there is a `members/<name>/features.html`."""


def render_run(page: RunPage) -> str:
    """Render the page as one self-contained HTML document. All text is escaped."""
    figures = {"training": svg(curves.training_curves(page.records, page.k, page.sources), "training curves")}
    evaluation = page.evaluation
    if evaluation is not None:
        figures["density"] = svg(curves.density_histogram(evaluation["density"]), "histogram of feature densities")
        figures["positions"] = svg(curves.loss_by_position(evaluation["cross_entropy"]), "loss by position")
    if evaluation is not None and "layers" in evaluation:
        features = evaluation["density"]["features"] // len(evaluation["layers"])
        figures["layers"] = svg(curves.by_layer(evaluation["layers"], features), "measurements for each layer")
    if page.members:
        names = [", ".join(filter(None, (m["name"], m["series"], m["label"]))) for m in page.members]
        figures["members"] = svg(curves.member_curves(page.records, names), "training curves of each member")
        figures["pareto"] = svg(pareto(page.members), "sparsity against fidelity")
    shown = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    columns, rows = page.values
    return render_page("run_report.html.j2", **shown | {"figures": figures, "columns": columns, "values": rows})
