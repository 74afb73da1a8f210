"""Plots of probes: a sweep over sites, ROC curves, calibration, a generalisation matrix, causal effects, costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jax_interp.core.estimates import Estimate
from jax_interp.core.terminal import printable
from jax_interp.views.curves import numbered
from jax_interp.views.style import (
    BLUE,
    GREEN,
    GRID,
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
)  # fmt: skip

COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED)
LONGEST_NAME = 28


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve of a sweep.

    Args:
      values: a figure for each site. NaN where there is none.
      low: the lower end of each interval. Empty: no band is drawn.
      high: the upper end.
      reference: whether it is a baseline, drawn as a thin dashed line.
    """

    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    reference: bool = False


@styled
def site_sweep(sites: Sequence[str], curves: Mapping[str, Curve], quantity: str, chance: float | None = None) -> Figure:
    """A figure of each site, for several probes and baselines.

    Args:
      sites: the addresses, in order.
      curves: name -> curve.
      quantity: what the figures are.
      chance: the figure of chance, drawn as a dotted line. None: no line.
    """
    figure, (axes,) = canvas(8.2, 3.4)
    x, styles = np.arange(len(sites)), iter(["--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (6, 2))] * 4)
    solid = 0
    for name, curve in curves.items():
        if curve.reference:
            axes.plot(x, curve.values, color=MUTED, lw=1.1, ls=next(styles), label=name)
            continue
        color = COLORS[solid % len(COLORS)]
        solid += 1
        axes.plot(x, curve.values, color=color, lw=1.8, marker="o", ms=3.5, label=name)
        if len(curve.low):
            axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.15, lw=0)
    if chance is not None:
        axes.axhline(chance, color=INK, lw=0.8, ls=":", label="chance")
    labels, where = numbered(sites)
    axes.set_xticks(x, labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    axes.set(xlabel=where, ylabel=quantity, title=f"{quantity} by site")
    legend_beside(axes)
    return figure


@styled
def roc_plot(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """ROC curves, with the false-positive rate on a linear and on a logarithmic axis.

    Args:
      curves: name -> (false-positive rates, true-positive rates).
    """
    figure, (whole, low) = canvas(8.2, 3.3, 2)
    for i, (name, (false, true)) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        whole.step(false, true, where="post", color=color, lw=1.6, label=name)
        low.step(np.maximum(false, 1e-4), true, where="post", color=color, lw=1.6, label=name)
    grid = np.geomspace(1e-4, 1, 50)
    whole.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=":")
    low.plot(grid, grid, color=MUTED, lw=0.8, ls=":", label="chance")
    low.set_xscale("log")
    low.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
    low.minorticks_off()
    for axes, title in ((whole, "ROC"), (low, "where false alarms are rare")):
        axes.set(title=title, xlabel="false-positive rate", ylabel="true-positive rate", ylim=(-0.02, 1.02))
    legend_beside(low)
    return figure


@styled
def calibration_plot(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Reliability curves.

    Args:
      curves: name -> (mean predicted probability of each bin, share of positive examples in it).
    """
    figure, (axes,) = canvas(4.6, 3.3)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=":", label="perfect")
    for i, (name, (predicted, found)) in enumerate(curves.items()):
        axes.plot(predicted, found, color=COLORS[i % len(COLORS)], lw=1.5, marker="o", ms=3.5, label=name)
    axes.set(title="Calibration", xlabel="predicted probability", ylabel="share of positives", xlim=(0, 1), ylim=(0, 1))
    legend_beside(axes)
    return figure


@styled
def transfer_matrix(
    values: Float[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    quantity: str,
    low: float = 0.5,
) -> Figure:
    """A generalisation matrix, with its numbers. NaN is blank.

    Args:
      values: the figure of each training set (row) on each test set (column).
      rows: the names of the training sets.
      columns: the names of the test sets.
      quantity: what the figures are.
      low: the figure without colour, such as that of chance.
    """
    height, width = np.shape(values)
    figure, (axes,) = canvas(max(4.2, 0.75 * width + 2.2), max(2.4, 0.42 * height + 1.5))
    axes.pcolormesh(np.arange(width + 1), np.arange(height + 1), np.ma.masked_invalid(values), cmap=fading(BLUE),
                    vmin=low, vmax=1.15, edgecolors=GRID, linewidth=0.5)  # fmt: skip
    for i, j in np.ndindex(height, width):
        if values[i, j] == values[i, j]:
            own = rows[i] == columns[j]
            axes.text(j + 0.5, i + 0.5, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8.5, color=INK,
                      fontweight="bold" if own else "normal")  # fmt: skip
    axes.grid(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(width) + 0.5, [short_name(name) for name in columns], rotation=35, ha="right")
    axes.set_yticks(np.arange(height) + 0.5, [short_name(name) for name in rows])
    axes.set(title=quantity, xlabel="tested on", ylabel="trained on")
    return figure


@styled
def effect_bars(effects: Mapping[str, Mapping[str, Estimate]], quantity: str) -> Figure:
    """Bars with intervals, in groups.

    Args:
      effects: group -> name of the bar -> figure. All groups have the same bars.
      quantity: what the figures are.
    """
    names = list(dict.fromkeys(name for bars in effects.values() for name in bars))
    figure, (axes,) = canvas(max(4.6, 0.55 * len(effects) * len(names) + 2.6), 3.3)
    wide = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        of = [(k, bars[name]) for k, bars in enumerate(effects.values()) if name in bars]
        x = np.array([k for k, _ in of]) + (i - (len(names) - 1) / 2) * wide
        values = np.array([e.value for _, e in of])
        ends = np.array([[max(e.value - e.low, 0), max(e.high - e.value, 0)] for _, e in of]).T
        axes.bar(x, values, width=0.9 * wide, color=COLORS[i % len(COLORS)], alpha=0.85, lw=0, label=name)
        axes.errorbar(x, values, yerr=np.nan_to_num(ends), fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_xticks(range(len(effects)), [short_name(name) for name in effects])
    axes.set(ylabel=quantity, title=quantity)
    legend_beside(axes)
    return figure


@styled
def component_plane(
    points: Float[np.ndarray, "example 2"], labels: Sequence[int], classes: Sequence[str], title: str
) -> Figure:
    """Examples in the plane of their first two principal components, coloured by class.

    Args:
      points: the coordinates.
      labels: the class of each example.
      classes: the names of the classes.
      title: the heading, such as the share of variance.
    """
    figure, (axes,) = canvas(4.4, 3.3)
    for number, name in enumerate(classes):
        of = np.asarray(labels) == number
        axes.scatter(*np.asarray(points)[of].T, s=7, alpha=0.55, lw=0, color=COLORS[number % len(COLORS)], label=name)
    axes.set(title=title, xlabel="first component", ylabel="second component")
    legend_beside(axes)
    return figure


@styled
def cost_recall_plot(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str, fpr: float) -> Figure:
    """Recall at a fixed false-positive rate against the cost of an example.

    Args:
      curves: name -> (costs, recalls). A monitor of one cost is a point.
      unit: the unit of costs.
      fpr: the false-positive rate.
    """
    figure, (axes,) = canvas(6.2, 3.3)
    shades = iter(matplotlib.colormaps["viridis"](np.linspace(0.1, 0.8, max(len(curves), 2))))
    for name, (costs, recalls) in curves.items():
        # a ring stays visible where a curve passes through it
        look = {"ls": "-", "ms": 4} if len(costs) > 1 else {"ls": "", "ms": 9, "mfc": "none", "mew": 1.6, "zorder": 3}
        axes.plot(costs, recalls, marker="o", lw=1.6, color=next(shades), label=name, **look)
    if all(min(costs) > 0 for costs, _ in curves.values()):
        logarithmic(axes, "x")
    axes.set(title=f"Recall at {100 * fpr:g} % false alarms", xlabel=f"cost of an example, {unit}", ylabel="recall")
    axes.set_ylim(-0.02, 1.02)
    legend_beside(axes)
    return figure


def short_name(name: str) -> str:
    """A name for a tick or a legend: without control characters, cut after 27 of them."""
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
