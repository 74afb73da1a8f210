"""The page of a circuit: its graph, which a reader can walk through, and the figures that judge it.

The page is drawn from plain data: nodes with a row, edges with a score and a rank. A slider sets how many edges are
shown. A node or an edge under the pointer (or with the keyboard's focus) shows what goes in and out of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from jax_interp.core.errors import UserError
from jax_interp.views.page import render_page
from jax_interp.views.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    canvas,
    legend_beside,
    logarithmic,
    styled,
    svg,
)

MOST_EDGES = 5000
"""The page holds the first of the edges up to this number."""


@dataclasses.dataclass(frozen=True)
class CircuitEdge:
    """One edge of a circuit.

    Args:
      source: the name of the node that it leaves.
      target: the name of the node that it enters.
      kind: the input of the target, such as "q"; "" if it has one input.
      score: its score.
    """

    source: str
    target: str
    kind: str
    score: float


@dataclasses.dataclass(frozen=True)
class ScoredCircuit:
    """A curve of faithfulness with the curve of random circuits, for `faithfulness_plot`.

    Args:
      sizes: the number of edges of each circuit.
      value: [size, (value, low, high)].
      random: the same for the random circuits.
    """

    sizes: Sequence[int]
    value: np.ndarray
    random: np.ndarray


def circuit_page(
    title: str,
    rows: Sequence[Sequence[str]],
    edges: Sequence[CircuitEdge],
    *,
    shown: int,
    facts: Mapping[str, Any],
    figures: Mapping[str, Figure] | None = None,
) -> str:
    """Draw the page as one HTML document.

    Args:
      title: the heading.
      rows: the names of the nodes of each row, from the input up to the logits.
      edges: the edges in the order in which they enter the circuit. At most `MOST_EDGES` of them are kept.
      shown: how many edges are shown at first.
      facts: names and values above the graph.
      figures: figures below the graph, by caption.

    Raises:
      UserError: an edge names a node that is in no row, or there is no edge.
    """
    known = {name for row in rows for name in row}
    kept = list(edges)[:MOST_EDGES]
    unknown = [end for edge in kept for end in (edge.source, edge.target) if end not in known]
    if unknown or not kept:
        raise UserError(f"the page needs edges between its nodes; {unknown[0]!r} is none" if unknown else "no edges")
    graph = {
        "rows": [list(row) for row in rows],
        "edges": [[edge.source, edge.target, edge.kind, round(float(edge.score), 9)] for edge in kept],
        "shown": min(shown, len(kept)),
    }
    # The text is data in a script element: no "<" may end the element.
    text = json.dumps(graph, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    drawn = {caption: svg(figure, caption) for caption, figure in (figures or {}).items()}
    return render_page(
        "circuit_page.html.j2", title=title, facts=facts, graph=Markup(text), figures=drawn, kept=len(kept),
        all=len(edges), shown=min(shown, len(kept)),
    )  # fmt: skip


@styled
def faithfulness_plot(circuits: Mapping[str, ScoredCircuit]) -> Figure:
    """Faithfulness against the number of edges, with intervals, and random circuits of equal size.

    Args:
      circuits: the curves by name.
    """
    colors = (BLUE, ORANGE, GREEN, PURPLE, RED)
    figure, (axes,) = canvas(6.4, 3.6)
    for i, (name, one) in enumerate(circuits.items()):
        color = colors[i % len(colors)]
        sizes = np.asarray(one.sizes)
        used = sizes > 0
        axes.plot(sizes[used], one.value[used, 0], marker="o", ms=4, lw=1.5, color=color, label=name)
        axes.fill_between(sizes[used], one.value[used, 1], one.value[used, 2], color=color, alpha=0.15, lw=0)
        axes.plot(sizes[used], one.random[used, 0], lw=1.1, ls="--", color=MUTED if len(circuits) == 1 else color)
        axes.fill_between(sizes[used], one.random[used, 1], one.random[used, 2], color=MUTED, alpha=0.12, lw=0)
    axes.plot([], [], lw=1.1, ls="--", color=MUTED, label="random, equal size")
    axes.axhline(1, color=INK, lw=0.8, ls=":")
    axes.axhline(0, color=INK, lw=0.8, ls=":")
    logarithmic(axes, "x")
    axes.set(title="Faithfulness", xlabel="edges in the circuit", ylabel="0: corrupted, 1: whole model")
    legend_beside(axes)
    return figure
