"""Component cards for a page: the inputs on which a component is important, its vectors, and its importance in a text.

`shown` is plain data. All text in it is escaped:

    {"rows": 8192, "threshold": 0.1, "matrices": [...], "passages": [...]}      passages: only for language models
    matrix    {"name": "blocks.2.mlp.up", "C": 512, "alive": 40, "V": [card, d_in], "U": [card, d_out], "cards": [...]}
    card      {"component": 17, "mean": 0.02, "rate": 0.03}. For a language model also "inputs" and "predicted", lists
              of (token, share, lift), and "windows": [{"tokens", "importance", "activation", "peak"}]. A token is None
              where the text has a gap.
    passage   {"tokens": [...], "importance": {"blocks.2.mlp.up": [card, pos]}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from jax_interp.views.heatmap import shortened
from jax_interp.views.style import BLUE, GRID, MUTED, ORANGE, canvas, styled, svg
from jax_interp.views.tokens import coloured

GAP = "┆"
WIDEST = 64  # the most cells in a row of a vector map; more cells would be too small to see


def prepared(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The data for the template: `shown` with figures and coloured windows."""
    matrices = [dict(matrix) | drawn(matrix) for matrix in shown["matrices"]]
    with_cards = [matrix for matrix in shown["matrices"] if len(matrix["cards"])]
    passages = []
    for group in groups([matrix["name"] for matrix in with_cards]):
        own = [matrix for matrix in with_cards if matrix["name"] in group]
        maps = [svg(along(own, passage), "importance by position") for passage in shown.get("passages", ())]
        passages.append({"name": layer_of(group[0]) or "outside the blocks", "maps": maps})
    of_text = "passages" in shown
    return dict(shown) | {"matrices": matrices, "passages": passages if of_text else [], "of_text": of_text}


def drawn(matrix: Mapping[str, Any]) -> dict[str, Any]:
    """The additional data of a matrix for the page: the figure of its vectors, and cards with coloured windows."""
    cards = [dict(card) | {"windows": [window(found) for found in card.get("windows", ())]} for card in matrix["cards"]]
    figure = svg(vectors(matrix), f"V and U of components of {matrix['name']}") if cards else ""
    return {"figure": figure, "cards": cards}


def window(found: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a window for the page: the importance at its peak, and its tokens, coloured by importance."""
    tokens = [GAP if token is None else token for token in found["tokens"]]
    both = zip(found["importance"], found["activation"], strict=True)
    titles = [f"importance {g:.3g}, activation {a:.3g}" for g, a in both]
    text = coloured(tokens, found["importance"], 1.0, found["peak"], titles)
    return {"peak": found["importance"][found["peak"]], "text": text}


def layer_of(name: str) -> str:
    """The layer of a matrix: `blocks.2` for `blocks.2.mlp.up`, "" for a matrix outside the blocks."""
    head, *rest = name.split(".")
    return f"blocks.{rest[0]}" if head == "blocks" and len(rest) > 1 else ""


def groups(names: Sequence[str]) -> list[list[str]]:
    """The names of matrices, grouped by layer."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(layer_of(name), []).append(name)
    return list(found.values())


@styled
def vectors(matrix: Mapping[str, Any]) -> Figure:
    """The columns of V and the rows of U as heat maps, one component per row. Blue is positive, orange negative.

    Each vector is divided by its largest entry. For a wide vector, each cell shows the largest of several neighbouring
    entries.
    """
    V, U = (np.asarray(matrix[name], float) for name in ("V", "U"))
    figure, axes = canvas(10, 0.75 + 0.2 * len(V), 2)
    labels = [str(card["component"]) for card in matrix["cards"]]
    for ax, name, values in zip(axes, ("V: reads", "U: writes"), (V, U)):
        cells = pooled(values, WIDEST)
        largest = np.abs(cells).max(axis=1, keepdims=True)
        shaded(ax, cells / np.where(largest > 0, largest, 1.0))
        entries = values.shape[1]
        over = f", the largest of each {entries / WIDEST:.2g}" if entries > WIDEST else ""
        framed(ax, labels, title=name, xlabel=f"{entries} entries{over}")
        ax.set_xticks(np.array([0.5, cells.shape[1] - 0.5]), ["0", str(entries - 1)])
    axes[0].set_ylabel("component")
    return figure


@styled
def along(matrices: Sequence[Mapping[str, Any]], passage: Mapping[str, Any]) -> Figure:
    """A heat map of the importance of each component at each position of a passage. 0 is blank, 1 is full colour."""
    names = [matrix["name"] for matrix in matrices]
    values = np.concatenate([np.asarray(passage["importance"][name], float) for name in names])
    labels = [
        f"{m['name'].removeprefix(layer_of(m['name']) + '.')} {c['component']}" for m in matrices for c in m["cards"]
    ]
    figure, (axes,) = canvas(10, 1.0 + 0.155 * len(values))
    shaded(axes, values)
    framed(axes, labels)
    axes.tick_params(labelsize=7)
    axes.hlines(np.arange(1, len(values)), 0, values.shape[1], color=GRID, lw=0.4, zorder=0.5)
    axes.hlines(np.cumsum([len(matrix["cards"]) for matrix in matrices])[:-1], 0, values.shape[1], color=MUTED, lw=0.7)
    tokens = [shortened(GAP if token is None else token, 9) for token in passage["tokens"]]
    axes.set_xticks(np.arange(len(tokens)) + 0.5, tokens, rotation=90, family="DejaVu Sans Mono", fontsize=7)
    return figure


def framed(axes: Axes, rows: Sequence[str], **labels: Any) -> None:
    """Set up the axes of a heat map: named rows from top to bottom, without tick marks."""
    axes.set(**labels)
    axes.set_ylim(len(rows), 0)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=GRID, linewidth=0.6)


def shaded(axes: Axes, values: Float[np.ndarray, "row column"], levels: int = 8) -> None:
    """Draw a heat map of values between -1 and 1. Blue is positive, orange negative; the opacity is the magnitude.

    Values are rounded to levels, and each level is one path. A mesh would make the file ten times larger.
    """
    level = np.round(np.clip(np.nan_to_num(values), -1, 1) * levels)
    for sign, color in ((1, BLUE), (-1, ORANGE)):
        for i in range(1, levels + 1):
            rows, columns = np.nonzero(level == sign * i)
            if len(rows):
                axes.add_patch(PathPatch(squares(columns, rows), facecolor=color, alpha=i / levels, linewidth=0))
    axes.set_xlim(0, values.shape[1])


def squares(x: np.ndarray, y: np.ndarray) -> Path:
    """Unit squares with these lower corners, as one path."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    vertices = np.stack([x, y], axis=-1)[:, None] + corners
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(vertices.reshape(-1, 2), np.tile(codes, len(x)))


def pooled(values: Float[np.ndarray, "row entry"], widest: int) -> Float[np.ndarray, "row cell"]:
    """Reduce to at most `widest` columns: keep the entry of largest magnitude in each group of neighbours."""
    if values.shape[1] <= widest:
        return values
    parts = np.array_split(values, widest, axis=1)
    return np.stack([part[np.arange(len(part)), np.abs(part).argmax(axis=1)] for part in parts], axis=1)
