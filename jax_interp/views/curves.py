"""Plots of the training and evaluation of a dictionary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jax_interp.views.style import BLUE, GREEN, INK, MUTED, ORANGE, RED, canvas, legend_beside, styled


@styled
def training_curves(records: Sequence[Mapping[str, Any]], k: int | None = None, sources: int = 1) -> Figure:
    """Loss, FVU, L0 and dead features against the number of training tokens.

    Args:
      records: the records of a metrics log.
      k: the number of active latents per token, if it is fixed. It is drawn as a horizontal line in the plot of L0.
      sources: the number of sources of a cross-layer dictionary. Each source has `k` active latents.
    """
    records = [record for record in records if "loss" in record and "tokens" in record]
    tokens = np.array([record["tokens"] for record in records], float) / 1e6
    figure, (loss, fvu, sparsity, dead) = canvas(10, 2.6, 4)
    for axes, name, title, color in (
        (loss, "loss", "Loss, all terms", BLUE),
        (fvu, "fvu", "Variance unexplained", ORANGE),
        (sparsity, "l0", "L0: active latents", GREEN),
        (dead, "dead", "Dead features", RED),
    ):
        axes.plot(tokens, column(records, name), color=color, lw=1.6)
        axes.set(title=title, xlabel="tokens, millions")
        axes.set_xlim(0, None)
    loss.set_ylabel("mean over tokens")
    fvu.set_ylabel("fraction of variance")
    sparsity.set_ylabel("per token")
    dead.set_ylabel("features")
    fvu.set_ylim(0, min(1.05, 1.1 * np.nanmax([*column(records, "fvu"), 0.05])))
    sparsity.set_ylim(0, 1.25 * np.nanmax([*column(records, "l0"), sources * (k or 1)]))
    if k:
        label = f"k = {k}" if sources == 1 else f"{sources} · k = {sources * k}"
        sparsity.axhline(sources * k, color=MUTED, lw=0.9, ls="--")
        sparsity.annotate(label, (tokens[-1] if len(tokens) else 0, sources * k), xytext=(0, 4),
                          textcoords="offset points", ha="right", va="bottom", color=MUTED, fontsize=8.5)  # fmt: skip
    dead.set_ylim(0, 1.15 * np.nanmax([*column(records, "dead"), 3]))
    dead.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


@styled
def member_curves(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """FVU, L0 and dead features of each dictionary of a sweep, against the number of training tokens.

    Args:
      records: the records of the metrics log, with `member.<i>.fvu`, `.l0` and `.dead`.
      names: the name of each member, for the legend. A member that diverged has no line from then on.
    """
    records = [record for record in records if "tokens" in record]
    tokens = np.array([record["tokens"] for record in records], float) / 1e6
    figure, panels = canvas(10, 3.0, 3)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, max(len(names), 2)))
    for axes, (name, title, label) in zip(
        panels,
        (
            ("fvu", "Variance unexplained", "fraction of variance"),
            ("l0", "L0", "active latents per token"),
            ("dead", "Dead features", "features"),
        ),
    ):
        for i, member in enumerate(names):
            axes.plot(tokens, column(records, f"member.{i}.{name}"), color=shades[i], lw=1.2, label=member)
        axes.set(title=title, xlabel="tokens, millions", ylabel=label)
        axes.set_xlim(0, None)
        axes.set_ylim(0, None)
    panels[-1].yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(names) <= 16:
        legend_beside(panels[-1], fontsize=7.5)
    return figure


def column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """One metric of all records; NaN where a record lacks it or has null."""
    values = [record.get(name) for record in records]
    return np.array([np.nan if value is None else value for value in values], float)


@styled
def density_histogram(density: Mapping[str, Any]) -> Figure:
    """A histogram of the firing rates of features, on a logarithmic scale.

    Args:
      density: {"log10_edges", "counts", "dead", "features", "window"}. The number of dead features is shown as text.
    """
    edges, counts = np.array(density["log10_edges"], float), np.array(density["counts"], float)
    figure, (axes,) = canvas(4.9, 3.5)
    axes.bar(edges[:-1], counts, width=list(np.diff(edges)), align="edge", color=BLUE, alpha=0.85, linewidth=0)
    some = np.flatnonzero(counts)
    low = float(np.floor(edges[some[0]]) if len(some) else edges[0])
    axes.set_xlim(low, 0)
    axes.set_ylim(0, 1.2 * max(counts.max(initial=0), 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * 10.0**v:g} %"))
    axes.set(title="How often features fire", xlabel="tokens that a feature fires on", ylabel="features")
    dead, features = density["dead"], density["features"]
    axes.text(0.98, 0.97, f"{dead:,} of {features:,} never fired\non {density['window']:,} tokens",
              transform=axes.transAxes, ha="right", va="top", color=MUTED, fontsize=8.5)  # fmt: skip
    return figure


@styled
def by_layer(layers: Sequence[Mapping[str, Any]], features: int) -> Figure:
    """The FVU of each target, and the L0 and number of dead features of each source.

    Args:
      layers: for each layer {"reads", "writes", "fvu", "l0", "dead"}.
      features: the number of features of a source.
    """
    figure, panels = canvas(10, 2.7, 3)
    shown = (
        ("fvu", "writes", "Variance unexplained", "fraction of variance", ORANGE, 1e-3),
        ("l0", "reads", "L0", "active latents per token", GREEN, 0.1),
        ("dead", "reads", "Dead features", f"features, of {features:,}", RED, 4),
    )
    for axes, (name, of, title, label, color, least) in zip(panels, shown, strict=True):
        ticks, where = numbered([layer[of] for layer in layers])
        heights = [np.nan if layer[name] is None else layer[name] for layer in layers]
        axes.bar(range(len(layers)), heights, width=0.7, color=color, alpha=0.85, linewidth=0)
        axes.set_xticks(range(len(layers)), ticks)
        axes.set(title=title, xlabel=where, ylabel=label)
        axes.set_ylim(0, 1.15 * max(np.nanmax(heights, initial=0), least))
    panels[2].yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def numbered(addresses: Sequence[str]) -> tuple[list[str], str]:
    """Labels for an axis of addresses, and the label of the axis.

    Addresses that differ only in the layer are labelled by the number of the layer.
    """
    same = {re.sub(r"\d+", "*", address, count=1) for address in addresses}
    numbers = [re.search(r"\d+", address) for address in addresses]
    if len(same) == 1 and all(numbers):
        return [number.group() for number in numbers if number], same.pop()
    return list(addresses), ""


VARIANTS = (
    ("zero_by_position", "replaced by zero", RED),
    ("mean_by_position", "replaced by the mean", ORANGE),
    ("spliced_by_position", "replaced by the reconstruction", BLUE),
    ("clean_by_position", "unchanged model", INK),
)


@styled
def loss_by_position(cross_entropy: Mapping[str, Any], bins: int = 16) -> Figure:
    """Cross-entropy against the position in the sequence.

    Args:
      cross_entropy: for each key of `VARIANTS` a list with one loss per position. A loss may be None.
      bins: the approximate number of bins. Losses in a bin of neighbouring positions are averaged.
    """
    figure, (axes,) = canvas(5.1, 3.5)
    length = len(cross_entropy["clean_by_position"])
    size = max(1, length // bins)
    for name, label, color in VARIANTS:
        values = np.array([np.nan if v is None else v for v in cross_entropy[name]], float)
        middles, means = binned(values, size)
        axes.plot(middles, means, color=color, lw=1.7, label=label, ls="--" if color == INK else "-")
    axes.set_xlim(0, length)
    axes.set_ylim(0, None)
    grouped = f", mean of {size} neighbours" if size > 1 else ""
    axes.set(title="Loss by position", xlabel=f"position in the sequence{grouped}",
             ylabel="cross-entropy, nats per token")  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2, columnspacing=1.2, handlelength=1.6)
    return figure


def binned(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle position and the mean (ignoring NaN) of consecutive bins of `size` values. The last may be smaller."""
    starts = range(0, len(values), size)
    groups = [values[start : start + size] for start in starts]
    middles = np.array([start + (len(group) - 1) / 2 for start, group in zip(starts, groups)])
    return middles, np.array([np.nan if np.isnan(group).all() else np.nanmean(group) for group in groups])
