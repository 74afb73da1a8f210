"""A plot of next-token probabilities under several variants of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jax_interp.core.terminal import printable
from jax_interp.views.style import BLUE, MUTED, ORANGE, canvas, legend_beside, styled

COLORS = (MUTED, BLUE, ORANGE)


@styled
def next_token_bars(rows: Sequence[Mapping[str, Any]], variants: Mapping[str, str]) -> Figure:
    """A bar chart of the probabilities of tokens, with one bar for each variant of the model.

    Args:
      rows: for each token a dict with its text under "token", and its probability under the key of each variant. The
        first row is at the top.
      variants: key of a variant -> its label.
    """
    figure, (axes,) = canvas(8.8, 0.5 + 0.36 * len(rows) + 0.55)
    places, height = np.arange(len(rows)), 0.8 / max(len(variants), 1)
    for i, ((name, label), color) in enumerate(zip(variants.items(), COLORS)):
        axes.barh(
            places + (i + 0.5) * height - 0.4, [row[name] for row in rows], height * 0.92, color=color, label=label
        )
    axes.set_yticks(places, [printable(row["token"]) for row in rows])
    for label in axes.get_yticklabels():
        label.set_fontfamily("DejaVu Sans Mono")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(0, min(1.0, 1.08 * max((row[name] for row in rows for name in variants), default=1.0) or 1.0))
    axes.set(title="The token after the prompt", xlabel="probability")
    legend_beside(axes)
    return figure
