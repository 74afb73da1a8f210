"""The sections of a page about a measured steering: tables and figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_interp.core.estimates import Estimate
from jax_interp.steering.measuring.report import SteeringReport
from jax_interp.steering.measuring.spread import Spread
from jax_interp.steering.measuring.steerability import FactorEffect, Steerability
from jax_interp.steering.measuring.transfer import Transfer
from jax_interp.views.probe_plots import Curve
from jax_interp.views.sectioned_page import Section, Table
from jax_interp.views.steering_plots import (
    dose_response,
    explained_variance,
    propensity_curves,
    slope_histogram,
    transfer_heatmap,
)

SPREAD_COLUMNS = ("mean", "95 % interval", "sd", "5 % to 95 % of samples", "n", "groups")


def sections(report: SteeringReport) -> list[Section]:
    """The sections of a report, for `views.sectioned_page`: effect, factors, dose and response, transfer."""
    found = [_effect(report), _factors(report.steerability), _doses(report)]
    found += [] if report.transfer is None else [_transfer(report.transfer)]
    return [section for section in found if section is not None]


def curve_of(figures: Sequence[Spread | Estimate], *, reference: bool = False) -> Curve:
    """Figures as a curve with the ends of their intervals."""
    means = [one.mean if isinstance(one, Spread) else one for one in figures]
    known = not reference and all(np.isfinite([one.low, one.high]).all() for one in means)
    low, high = ([one.low for one in means], [one.high for one in means]) if known else ((), ())
    return Curve([one.value for one in means], low, high, reference)


def spread_cells(found: Spread) -> list[str]:
    """The cells of one figure under `SPREAD_COLUMNS`."""
    low, high = found.quantiles[0], found.quantiles[-1]
    interval = f"{found.mean.low:.3f} to {found.mean.high:.3f}"
    return [
        f"{found.mean.value:.3f}",
        interval,
        f"{found.sd:.3f}",
        f"{low:.3f} to {high:.3f}",
        str(found.n),
        str(found.groups),
    ]


def _effect(report: SteeringReport) -> Section:
    own, found = report.steerability, report.propensity
    rows = [("slope, nats for each unit of strength", own.slope), ("Spearman with the strength", own.spearman)]
    rows += [("R² of the line of a question", own.r_squared)]
    rows += [(f"propensity at {s:g}, nats", one) for s, one in zip(own.strengths, own.curve, strict=True)]
    rows += [(f"p(matching) at {s:g}", one) for s, one in zip(own.strengths, own.p_matching, strict=True)]
    rows += [(f"p(either answer) at {s:g}", one) for s, one in zip(own.strengths, own.p_answers, strict=True)]
    return Section(
        "Effect on the questions",
        (
            f"{own.slope.n} questions of {own.questions} in {own.slope.groups} groups, steered at: {report.placement}. "
            f"{_percent(own.anti_steerable)} of them are anti-steerable: their propensity falls with the strength.",
            "Propensity is log P(matching answer) - log P(other answer). Intervals are bootstraps over groups.",
        ),
        Table(("figure", *SPREAD_COLUMNS), [[name, *spread_cells(one)] for name, one in rows]),
        {
            "propensity of each question over the strength": propensity_curves(
                own.strengths, found.values, curve_of(own.curve), own.slopes
            ),
            "distribution of the slopes of questions": slope_histogram(own.slopes, own.slope.mean, own.anti_steerable),
        },
        warning=_unanswered(own),
    )


def _unanswered(own: Steerability) -> str:
    least = min(own.p_answers, key=lambda one: one.quantiles[2])
    if least.quantiles[2] >= 0.1:
        return ""
    strength = own.strengths[own.p_answers.index(least)]
    return (
        f"At strength {strength:g} the model gives one of the two answers with a probability of only "
        f"{least.quantiles[2]:.2g} (median of the questions): the propensity compares two unlikely answers."
    )


def _factors(own: Steerability) -> Section | None:
    if not own.factors:
        return None
    rows = []
    for name, factor in own.factors.items():
        rows.append([name, "all", _eta(factor), *[""] * (len(SPREAD_COLUMNS) + 1)])
        for level, of in factor.levels.items():
            rows.append(["", level, "", *spread_cells(of.slope), _percent(of.anti_steerable)])
    columns = ("factor", "level", "η² (by chance)", *SPREAD_COLUMNS, "anti-steerable")
    return Section(
        "Nuisance factors",
        ("The slopes of the questions of each level. η² is the share of their variance that a factor explains.",),
        Table(columns, rows),
        {
            "variance of slopes explained by each factor": explained_variance(
                {name: factor.eta_squared for name, factor in own.factors.items()},
                {name: factor.by_chance for name, factor in own.factors.items()},
            )
        },
    )


def _eta(factor: FactorEffect) -> str:
    return f"{factor.eta_squared} ({factor.by_chance:.3f})"


def _doses(report: SteeringReport) -> Section:
    own, effects = report.steerability, report.side_effects
    panels = {"p(matching)": {"questions": curve_of(own.p_matching)}}
    if effects is not None:
        panels["KL on neutral text, nats"] = {"KL": curve_of(effects.kl)}
        sizes = {site: curve_of([size.mean for size in of]) for site, of in effects.sizes.items()}
        panels |= {"relative size of the change": sizes} if sizes else {}
    if report.capabilities:
        accuracy = {}
        for name, of in report.capabilities.items():
            accuracy[name] = curve_of(of.accuracy)
            accuracy[f"{name}, unsteered"] = curve_of([of.unsteered] * len(of.accuracy), reference=True)
        panels["accuracy"] = accuracy
    if (text := report.coherence) is not None:
        unsteered = curve_of([text.unsteered_loss] * len(text.loss), reference=True)
        panels["loss of continuations, nats"] = {"steered": curve_of(text.loss), "unsteered": unsteered}
    headings, rows = report.dose_response()
    figures = {}
    names = list(panels)
    for start in range(0, len(names), 3):
        some = {name: panels[name] for name in names[start : start + 3]}
        figures["over the strength: " + ", ".join(some)] = dose_response(own.strengths, some)
    return Section(
        "Dose and response",
        ("Each figure has its 95 % interval and the standard deviation (sd) of its samples.",),
        Table(headings, rows),
        figures,
    )


def _transfer(found: Transfer) -> Section:
    slope, anti, relative = (found.table(name) for name in ("slope", "anti_steerable", "relative"))
    rows, columns = list(found.cells), list(next(iter(found.cells.values())))
    cells = [
        [row, column, *spread_cells(cell.slope), _percent(cell.anti_steerable), str(cell.relative), str(cell.agreement)]
        for row, of in found.cells.items()
        for column, cell in of.items()
    ]
    headings = ("found on", "measured on", *SPREAD_COLUMNS, "anti-steerable", "relative to own", "agreement")
    figures = {
        "slope of each vector on each set": transfer_heatmap(
            slope.values, rows, columns, "Slope (% anti-steerable)", notes=anti.values
        )
    }
    if np.isfinite(relative.values).any():
        figures["slope relative to the vector found there"] = transfer_heatmap(
            relative.values, rows, columns, "Slope relative to the vector found there"
        )
    notes = ("Agreement is the correlation of the slopes of questions with those of the vector that was found there.",)
    return Section("Transfer", notes, Table(headings, cells), figures)


def _percent(share: Estimate) -> str:
    interval = f" [{100 * share.low:.1f}, {100 * share.high:.1f}]" if np.isfinite(share.low) else ""
    return f"{100 * share.value:.1f}{interval} %"
