"""A self-contained page of a graph over the tokens of a prompt: tokens on the x axis, layers on the y axis.

A click on a node shows its edges and lists them. The page is drawn from plain data and fetches nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.terminal import printable
from jax_interp.views.packed_arrays import packed_json
from jax_interp.views.page import render_page

Kind = Literal["feature", "error", "token", "logit"]


@dataclasses.dataclass(frozen=True)
class GraphNode:
    """A node of the page.

    Args:
      kind: decides its symbol.
      pos: the token above which it stands.
      row: 0 is the lowest row.
      label: its name in lists.
      facts: what else is known of it, by name.
      promoted: tokens whose logits it raises most, with the amounts.
    """

    kind: Kind
    pos: int
    row: int
    label: str
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    promoted: Sequence[tuple[str, float]] = ()


@dataclasses.dataclass(frozen=True)
class GraphPage:
    """The content of a page.

    Args:
      title: the heading.
      tokens: the texts of the tokens.
      rows: the name of each row, from the bottom.
      nodes: the nodes.
      source: the number of the source of each edge.
      target: the number of the target of each edge.
      weight: the weight of each edge.
      facts: numbers of the whole graph, by name.
      description: a sentence below the heading.
    """

    title: str
    tokens: Sequence[str]
    rows: Sequence[str]
    nodes: Sequence[GraphNode]
    source: Int[np.ndarray, " edge"]
    target: Int[np.ndarray, " edge"]
    weight: Float[np.ndarray, " edge"]
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    description: str = ""


def graph_page(page: GraphPage) -> str:
    """The HTML of a page.

    Raises:
      UserError: an edge names a node that does not exist, or a weight is not finite.
    """
    n = len(page.nodes)
    ends = np.concatenate([page.source, page.target]).astype(np.int64)
    if len(page.source) != len(page.weight) or len(page.target) != len(page.weight):
        raise UserError("every edge needs a source, a target and a weight")
    if ((ends < 0) | (ends >= n)).any() or not np.isfinite(page.weight).all():
        raise UserError(f"the page has {n} nodes: an edge names another one, or its weight is not finite")
    nodes = [
        {
            "kind": node.kind,
            "pos": node.pos,
            "row": node.row,
            "label": printable(node.label),
            "facts": [[printable(name), printable(value)] for name, value in node.facts.items()],
            "promoted": [[printable(token), float(amount)] for token, amount in node.promoted],
        }
        for node in page.nodes
    ]
    data = {
        "tokens": [printable(token) for token in page.tokens],
        "rows": [printable(row) for row in page.rows],
        "nodes": nodes,
        "source": np.asarray(page.source).tolist(),
        "target": np.asarray(page.target).tolist(),
        "weight": [float(f"{w:.5g}") for w in np.asarray(page.weight).tolist()],
    }
    return render_page(
        "attribution_graph.html.j2",
        title=page.title,
        description=page.description,
        facts=dict(page.facts),
        data=packed_json(data),
    )
