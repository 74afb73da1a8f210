"""What a lens predicts at each layer and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jax_interp.views.heatmap import shortened
from jax_interp.views.style import BLUE, GRID, INK, fading, styled


@styled
def lens_map(
    words: Sequence[Sequence[str]],
    probabilities: Float[np.ndarray, "layer pos"],
    rows: Sequence[str],
    tokens: Sequence[str],
) -> Figure:
    """A table of predicted tokens. The last layer is at the top; a cell is as blue as its prediction is likely.

    Args:
      words: the token in each cell.
      probabilities: the probability of each cell's token.
      rows: the names of the layers.
      tokens: the tokens of the text, one for each position.
    """
    layers, positions = probabilities.shape
    width = max(0.6, 0.085 * max(len(shortened(word)) for row in words for word in row) + 0.1)
    figure = Figure(figsize=(max(5.0, width * positions + 1.8), 0.3 * layers + 1.4), layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(
        np.arange(positions + 1), np.arange(layers + 1), probabilities, cmap=fading(BLUE), vmin=0.0, vmax=1.0,
        edgecolors=GRID, linewidth=0.5,
    )  # fmt: skip
    for layer in range(layers):
        for pos in range(positions):
            color = "white" if probabilities[layer, pos] > 0.6 else INK
            axes.text(
                pos + 0.5, layer + 0.5, shortened(words[layer][pos]), ha="center", va="center", color=color,
                fontfamily="DejaVu Sans Mono", fontsize=8,
            )  # fmt: skip
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_yticks(np.arange(layers) + 0.5, list(rows))
    axes.set_xticks(np.arange(positions) + 0.5, [shortened(token) for token in tokens], rotation=90)
    for label in axes.get_xticklabels():
        label.set_fontfamily("DejaVu Sans Mono")
    axes.set_ylabel("layer")
    axes.set_xlabel("token of the text")
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, aspect=12, pad=0.015)
    bar.set_label("probability")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure
