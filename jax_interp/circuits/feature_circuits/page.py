"""A feature circuit as a self-contained page: layers upwards, positions to the right, errors as diamonds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jax_interp.circuits.feature_circuits.circuit import METRIC, FeatureCircuit
from jax_interp.circuits.feature_circuits.sites import ERROR
from jax_interp.core.errors import UserError
from jax_interp.surgery.address import Address
from jax_interp.views.attribution_graph import GraphNode, GraphPage, graph_page

NAMES = {"resid_pre": "pre", "resid_mid": "mid", "resid_post": "resid", "attn_out": "attn", "mlp_out": "mlp"}
"""Names of rows."""


def feature_circuit_page(
    circuit: FeatureCircuit,
    *,
    title: str = "Feature circuit",
    tokens: Sequence[str] | None = None,
    descriptions: Mapping[str, str] | None = None,
) -> str:
    """Draw a circuit as one HTML document that fetches nothing.

    Args:
      circuit: nodes and edges. `circuit.threshold` makes it smaller.
      title: the heading.
      tokens: the texts of the positions, for a circuit that keeps positions apart. None: their numbers. The first of
        them stands for position 0.
      descriptions: what is known of a feature, by the name of its node without the position
        ("blocks.2.mlp_out/311").

    Raises:
      UserError: there are fewer tokens than positions, or tokens for a circuit that sums over positions.

    Example:
        Path("circuit.html").write_text(feature_circuit_page(circuit.threshold(node=0.1, edge=0.01)))
    """
    if circuit.positions == "sum":
        if tokens is not None:
            raise UserError("this circuit sums over positions: leave out tokens=")
        columns = ["all positions"]
    else:
        length = int(circuit.pos.max(initial=0)) + 1
        columns = [str(i) for i in range(length)] if tokens is None else list(tokens)
        if len(columns) < length:
            raise UserError(f"{len(columns)} tokens for a circuit with {length} positions")
    known = descriptions or {}
    nodes = [_node(circuit, i, known) for i in range(circuit.n_nodes)]
    nodes.append(GraphNode("logit", len(columns) - 1, len(circuit.addresses), METRIC))
    errors = int((circuit.feature == ERROR).sum())
    return graph_page(
        GraphPage(
            title=title,
            tokens=columns,
            rows=[*map(_short, circuit.addresses), METRIC],
            nodes=nodes,
            source=np.asarray(circuit.source),
            target=np.asarray(circuit.target),
            weight=-np.asarray(circuit.weight),  # the page shows what a source adds, not what its ablation does
            facts={
                "features": str(circuit.n_nodes - errors),
                "errors": str(errors),
                "edges": str(circuit.n_edges),
                "ablation": circuit.ablation,
            },
            description="A circle is a feature, a diamond the error of a dictionary. An edge shows what its source "
            "adds to the metric directly through its target: minus the weight in the circuit, which is the effect "
            "of the source's ablation.",
        )
    )


def _node(circuit: FeatureCircuit, i: int, descriptions: Mapping[str, str]) -> GraphNode:
    name, is_error = circuit.name(i), circuit.feature[i] == ERROR
    facts = {"effect": f"{circuit.effect[i]:.4g}", "spread over prompts": f"{circuit.spread[i]:.3g}"}
    if text := descriptions.get(name.partition("@")[0]):
        facts["description"] = text
    pos = max(int(circuit.pos[i]), 0)
    return GraphNode("error" if is_error else "feature", pos, int(circuit.site[i]), name, facts)


def _short(address: str) -> str:
    """An address in the width of a row's name: mlp 2."""
    parsed = Address.parse(address)
    name = NAMES.get(parsed.name, parsed.name)
    return name if parsed.layers is None else f"{name} {parsed.layers}"
