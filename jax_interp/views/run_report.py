"""The page of a dictionary run: training curves, what it is worth, and of a sweep the Pareto plot. One HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax_interp.views import curves
from jax_interp.views.pareto import pareto
from jax_interp.views.report import environment
from jax_interp.views.style import svg


def render_run(
    *,
    title: str,
    description: str,
    config: str,
    records: Sequence[Mapping[str, Any]],
    k: int | None = None,
    sources: int = 1,
    evaluation: Mapping[str, Any] | None = None,
    evaluation_rows: Sequence[tuple[str, str, str]] = (),
    values: tuple[Sequence[str], Sequence[Sequence[str]]] = ((), ()),
    members: Sequence[Mapping[str, Any]] = (),
) -> str:
    """`records` are the metrics log. A run of one dictionary has its `evaluation` (`Evaluation.to_json()`) and, where
    it reads or writes several values, a table of `values` (columns, rows); a cross-layer one has `sources`. A sweep has
    `members`: {"name", "label", "series", "l0", "fvu", "recovered", "dead"} each."""
    figures = {"training": svg(curves.training_curves(records, k, sources), "training curves")}
    if evaluation is not None:
        figures["density"] = svg(curves.density_histogram(evaluation["density"]), "histogram of feature densities")
        figures["positions"] = svg(curves.loss_by_position(evaluation["cross_entropy"]), "loss by position")
    if evaluation is not None and "layers" in evaluation:
        features = evaluation["density"]["features"] // len(evaluation["layers"])
        figures["layers"] = svg(curves.by_layer(evaluation["layers"], features), "figures layer by layer")
    if members:
        figures["pareto"] = svg(pareto(members), "sparsity against fidelity")
    return environment().get_template("run_report.html.j2").render(
        title=title, description=description, config=config, figures=figures, evaluation=evaluation,
        evaluation_rows=evaluation_rows, columns=values[0], values=values[1], members=members,
    )  # fmt: skip
