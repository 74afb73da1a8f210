"""Plots of steering: propensity over strengths, slopes of questions, nuisance factors, transfer, dose and response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jax_interp.core.estimates import Estimate
from jax_interp.views.probe_plots import COLORS, Curve, short_name
from jax_interp.views.style import BLUE, GRID, INK, MUTED, ORANGE, canvas, legend_beside, styled

DRAWN = 60
"""The largest number of questions whose lines are drawn."""


@styled
def propensity_curves(
    strengths: Sequence[float],
    values: Float[np.ndarray, "question strength"],
    mean: Curve,
    slopes: Sequence[float],
    quantity: str = "propensity, nats",
) -> Figure:
    """The propensity of each question over the strengths, and their mean with its interval.

    Questions with a slope below 0 are orange. Of more than 60 questions, 60 are drawn, evenly spaced in the order of
    their slopes.

    Args:
      strengths: the strengths.
      values: the propensity of each question.
      mean: the mean with the ends of its intervals.
      slopes: the slope of each question.
      quantity: what the values are.
    """
    figure, (axes,) = canvas(5.4, 3.4)
    order = np.argsort(slopes, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(DRAWN, len(order))).round().astype(int))]
    named: set[str] = set()
    for i in chosen.tolist():
        name, color = ("anti-steerable", ORANGE) if slopes[i] < 0 else ("question", MUTED)
        label = name if name not in named else None
        axes.plot(strengths, values[i], color=color, lw=0.7, alpha=0.45, label=label)
        named.add(name)
    axes.plot(strengths, mean.values, color=BLUE, lw=2.2, marker="o", ms=3.5, label="mean")
    if len(mean.low):
        axes.fill_between(strengths, mean.low, mean.high, color=BLUE, alpha=0.2, lw=0, label="95 % interval")
    axes.axhline(0, color=INK, lw=0.8, ls=":")
    title = f"{len(values)} questions" if len(chosen) == len(values) else f"{len(chosen)} of {len(values)} questions"
    axes.set(xlabel="strength", ylabel=quantity, title=title)
    legend_beside(axes)
    return figure


@styled
def slope_histogram(slopes: Sequence[float], mean: Estimate, anti_steerable: Estimate, unit: str = "nats") -> Figure:
    """How the slopes of questions are distributed. The part below 0 is orange.

    Args:
      slopes: the slope of each question.
      mean: their mean with its interval.
      anti_steerable: the share of them below 0, with its interval.
      unit: the unit of the slopes for each unit of strength.
    """
    figure, (axes,) = canvas(5.4, 3.2)
    found = np.asarray(slopes, float)
    low, high = min(found.min(), 0.0), max(found.max(), 0.0)
    width = (high - low) / 30 or 1.0
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + 1)
    bins = edges.tolist() if len(edges) > 1 else [-width, 0.0, width]
    share = f"anti-steerable: {100 * anti_steerable.value:.1f} %"
    if np.isfinite(anti_steerable.low):
        share += f"\n[{100 * anti_steerable.low:.1f}, {100 * anti_steerable.high:.1f}] %"
    below = found[found < 0]
    axes.hist(np.minimum(below, -1e-3 * width), bins, color=ORANGE, alpha=0.85, lw=0, label=share)
    axes.hist(found[found >= 0], bins, color=BLUE, alpha=0.75, lw=0, label="steerable")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.axvline(mean.value, color=INK, lw=1.4, label=f"mean {mean.value:.2f}")
    if np.isfinite(mean.low):
        axes.axvspan(mean.low, mean.high, color=INK, alpha=0.12, lw=0, label="95 % interval")
    axes.set(xlabel=f"slope, {unit} for each unit of strength", ylabel="questions", title="Slopes of the questions")
    legend_beside(axes)
    return figure


@styled
def explained_variance(factors: Mapping[str, Estimate], by_chance: Mapping[str, float]) -> Figure:
    """η²: the share of the variance of slopes that each nuisance factor explains, beside that of chance.

    Args:
      factors: η² of each factor.
      by_chance: its expectation if the factor has no effect.
    """
    figure, (axes,) = canvas(max(4.2, 0.8 * len(factors) + 2.8), 3.0)
    for i, (name, found) in enumerate(factors.items()):
        ends = np.nan_to_num([[max(found.value - found.low, 0.0)], [max(found.high - found.value, 0.0)]])
        axes.bar(i, np.nan_to_num(found.value), width=0.6, color=COLORS[0], alpha=0.85, lw=0)
        axes.errorbar(i, np.nan_to_num(found.value), yerr=ends, fmt="none", ecolor=INK, elinewidth=0.9, capsize=3)
        label = "by chance" if not i else None
        axes.plot([i - 0.36, i + 0.36], [by_chance[name]] * 2, color=ORANGE, lw=1.6, label=label)
    names = [short_name(name) for name in factors]
    axes.set_xticks(range(len(names)), names, rotation=20 if sum(map(len, names)) > 40 else 0)
    axes.set_ylim(0, max(0.05, *(1.15 * np.nan_to_num(found.high) for found in factors.values()), 0.05))
    axes.set(ylabel="η²", title="η² of nuisance factors")
    legend_beside(axes)
    return figure


@styled
def transfer_heatmap(
    values: Float[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    quantity: str,
    *,
    neutral: float = 0.0,
    notes: Float[np.ndarray, "row column"] | None = None,
) -> Figure:
    """A matrix of transfer with its numbers: blue above the neutral figure, orange below it. NaN is blank.

    Args:
      values: the figure of each vector (row) on each set of questions (column).
      rows: where vectors were found.
      columns: where they are measured.
      quantity: what the figures are.
      neutral: the figure without colour.
      notes: a second figure for each cell, a share printed below the first one in percent, such as that of
        anti-steerable questions.
    """
    height, width = np.shape(values)
    figure, (axes,) = canvas(max(4.2, 0.85 * width + 2.4), max(2.4, 0.55 * height + 1.6))
    limit = float(np.nanmax(np.abs(np.asarray(values) - neutral), initial=0.0)) or 1.0
    both = [(*to_rgb(ORANGE), 0.75), (1, 1, 1, 0), (*to_rgb(BLUE), 0.75)]
    axes.pcolormesh(np.arange(width + 1), np.arange(height + 1), np.ma.masked_invalid(values), vmin=neutral - limit,
                    vmax=neutral + limit, cmap=LinearSegmentedColormap.from_list("both", both), edgecolors=GRID,
                    linewidth=0.5)  # fmt: skip
    for i, j in np.ndindex(height, width):
        if np.isfinite(values[i, j]):
            second = "" if notes is None else f"\n{100 * notes[i, j]:.0f} %"
            own = rows[i] == columns[j]
            axes.text(j + 0.5, i + 0.5, f"{values[i, j]:.2f}{second}", ha="center", va="center", fontsize=8.5,
                      color=INK, fontweight="bold" if own else "normal")  # fmt: skip
    axes.grid(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(width) + 0.5, [short_name(name) for name in columns], rotation=35, ha="right")
    axes.set_yticks(np.arange(height) + 0.5, [short_name(name) for name in rows])
    axes.set(title=quantity, xlabel="measured on", ylabel="found on")
    return figure


@styled
def dose_response(strengths: Sequence[float], panels: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Effect and side effects over the strength, one panel for each quantity.

    Args:
      strengths: the strengths.
      panels: quantity -> name -> curve with the ends of its intervals. A reference (the unsteered model) is dashed.
    """
    figure, every = canvas(max(4.6, 2.9 * len(panels)), 3.0, len(panels))
    for axes, (quantity, curves) in zip(every, panels.items(), strict=True):
        solid = 0
        for name, curve in curves.items():
            if curve.reference:
                axes.plot(strengths, curve.values, color=MUTED, lw=1.1, ls="--", label=short_name(name))
                continue
            color = COLORS[solid % len(COLORS)]
            solid += 1
            axes.plot(strengths, curve.values, color=color, lw=1.8, marker="o", ms=3.5, label=short_name(name))
            if len(curve.low):
                axes.fill_between(strengths, curve.low, curve.high, color=color, alpha=0.18, lw=0)
        axes.set(xlabel="strength", title=quantity)
        if len(curves) > 1:
            axes.legend(loc="best")
    return figure
