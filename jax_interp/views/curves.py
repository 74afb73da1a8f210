"""Plots of the training and evaluation of a dictionary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jax_interp.views.style import BLUE, GREEN, INK, MUTED, ORANGE, RED, canvas, styled


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
    figure, (fit, sparsity, dead) = canvas(10, 2.9, 3, width_ratios=[1.35, 1, 1])
    for name, label, color in (("loss", "loss, all terms", BLUE), ("fvu", "FVU", ORANGE)):
        fit.plot(tokens, [record.get(name, np.nan) for record in records], color=color, lw=1.6, label=label)
    fit.set(title="Variance unexplained", ylabel="fraction of variance")
    fit.set_ylim(0, None)
    fit.legend(loc="upper right")
    sparsity.plot(tokens, [record.get("l0", np.nan) for record in records], color=GREEN, lw=1.6)
    sparsity.set(title="L0", ylabel="active latents per token")
    sparsity.set_ylim(0, 1.25 * max([record.get("l0", 0) for record in records] + [sources * (k or 1)]))
    if k:
        label = f"k = {k}" if sources == 1 else f"{sources} · k = {sources * k}"
        sparsity.axhline(sources * k, color=MUTED, lw=0.9, ls="--")
        sparsity.annotate(label, (tokens[-1] if len(tokens) else 0, sources * k), xytext=(0, 4),
                          textcoords="offset points", ha="right", va="bottom", color=MUTED, fontsize=8.5)  # fmt: skip
    dead.plot(tokens, [record.get("dead", np.nan) for record in records], color=RED, lw=1.6)
    dead.set(title="Dead features", ylabel="features")
    dead.set_ylim(0, max(4, 1.15 * max((record.get("dead", 0) for record in records), default=0)))
    dead.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in (fit, sparsity, dead):
        axes.set_xlabel("training tokens, millions")
        axes.set_xlim(0, None)
    return figure


@styled
def density_histogram(density: Mapping[str, Any]) -> Figure:
    """A histogram of the firing rates of features, on a logarithmic scale.

    Args:
      density: {"log10_edges", "counts", "dead", "features", "window"}. The number of dead features is shown as text.
    """
    edges, counts = np.array(density["log10_edges"], float), np.array(density["counts"], float)
    figure, (axes,) = canvas(4.9, 3.1)
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
    figure, (axes,) = canvas(5.1, 3.1)
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
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * 1.42)  # space for the legend above the lines
    axes.legend(loc="upper right", ncols=2, columnspacing=1.2, handlelength=1.6)
    return figure


def binned(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle position and the mean (ignoring NaN) of consecutive bins of `size` values. The last may be smaller."""
    starts = range(0, len(values), size)
    groups = [values[start : start + size] for start in starts]
    middles = np.array([start + (len(group) - 1) / 2 for start, group in zip(starts, groups)])
    return middles, np.array([np.nan if np.isnan(group).all() else np.nanmean(group) for group in groups])
