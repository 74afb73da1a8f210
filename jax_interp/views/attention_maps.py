"""Attention patterns, one panel for each head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jax_interp.views.heatmap import shortened
from jax_interp.views.style import BLUE, GRID, fading, styled


@styled
def attention_maps(
    pattern: Float[np.ndarray, "head query key"], tokens: Sequence[str], titles: Sequence[str], columns: int = 4
) -> Figure:
    """Heat maps of attention weights. Rows are queries, columns are keys; white is 0 and full blue is 1.

    Args:
      pattern: the attention weights of each head.
      tokens: the tokens, the same for queries and keys.
      titles: the title of each head.
      columns: the number of panels in a row.
    """
    heads, length, _ = pattern.shape
    columns = min(columns, heads)
    rows = math.ceil(heads / columns)
    side = min(max(1.8, 0.19 * length), 6.0)
    label = 0.075 * max(len(shortened(token)) for token in tokens)
    figure = Figure(figsize=(columns * side + label + 0.6, rows * (side + 0.3) + label + 0.2), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    edges = np.arange(length + 1)
    for axes, weights, title in zip(panels.ravel(), pattern, titles):
        axes.pcolormesh(edges, edges, weights, cmap=fading(BLUE), vmin=0.0, vmax=1.0, edgecolors=GRID, linewidth=0.3)
        axes.set_title(title)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.set_xticks(edges[:-1] + 0.5, [shortened(token) for token in tokens], rotation=90)
        axes.set_yticks(edges[:-1] + 0.5, [shortened(token) for token in tokens])
        for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set_fontfamily("DejaVu Sans Mono")
            text.set_fontsize(min(8.0, 72 * side / length * 0.8))
    panels[0, 0].invert_yaxis()  # the axes are shared
    for axes in panels.ravel()[heads:]:
        axes.set_visible(False)
    figure.supxlabel("key", fontsize=9)
    figure.supylabel("query", fontsize=9)
    return figure
