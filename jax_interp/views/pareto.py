"""The Pareto plot of sparsity and fidelity of several dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from jax_interp.views.style import BLUE, GREEN, INK, ORANGE, RED, canvas, legend_beside, styled

COLORS = (BLUE, ORANGE, GREEN, RED, INK)


@styled
def pareto(points: Sequence[Mapping[str, Any]]) -> Figure:
    """FVU and recovered loss against L0.

    Args:
      points: for each dictionary {"l0", "fvu", "recovered", "series", "label"}. Points of the same series are connected
        in the order of their L0. Labels are drawn if there are at most 12 points.
    """
    series = list(dict.fromkeys(point["series"] for point in points))
    figure, panels = canvas(10, 3.4, 2)
    for axes, (name, title, label) in zip(
        panels,
        (
            ("fvu", "Variance unexplained", "FVU"),
            ("recovered", "Loss recovered", "share of the loss increase by mean ablation"),
        ),
    ):
        for i, one_series in enumerate(series):
            members = sorted((p for p in points if p["series"] == one_series), key=lambda p: p["l0"])
            l0, y = ([np.nan if p[key] is None else p[key] for p in members] for key in ("l0", name))
            axes.plot(l0, y, color=COLORS[i % len(COLORS)], marker="o", ms=4.5, lw=1.2, label=one_series or None)
            for point, x, height in zip(members, l0, y):
                if len(points) <= 12 and point["label"]:
                    axes.annotate(point["label"], (x, height), xytext=(4, 4), textcoords="offset points", fontsize=7.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        low, high = min(p["l0"] for p in points), max(p["l0"] for p in points)
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low / 1.6 <= t <= high * 1.6]
        axes.set_xticks(ticks)
        axes.set_xlim(max(low, 0.5) / 1.25, max(high, 0.6) * 1.45)
        axes.set(title=title, xlabel="L0, active latents per token", ylabel=label)
    if len(series) > 1:
        legend_beside(panels[-1], fontsize=8)
    return figure
