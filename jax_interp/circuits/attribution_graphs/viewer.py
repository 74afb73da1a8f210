"""The graph JSON that Neuronpedia's viewer and circuit-tracer's server read.

    write_viewer_graph(prune(graph), "graphs", slug="capitals", scan="gemma-scope-2-clt")

The fields are those of circuit-tracer 0.5.0 (`create_graph_files`). One thing differs. circuit-tracer gives the error
of layer 3 at position 2 the id "0_3_2", which is also that of feature 3 of layer 0 at position 2. Where both are nodes,
the error gets "0_3_2_error" here, so that no edge belongs to two nodes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.circuits.attribution_graphs.influence import Pruned
from jax_interp.circuits.attribution_graphs.nodes import Error, Feature, Logit, Node, Token
from jax_interp.core.atomic_write import atomic_write, make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json, read_bytes


def viewer_graph(pruned: Pruned, *, slug: str, scan: str, prompt: str | None = None) -> dict[str, Any]:
    """The kept nodes and edges as JSON values.

    Args:
      pruned: a pruned graph whose tokens have texts.
      slug: the name of the graph, and of its file: letters, digits, "-", "_" and ".".
      scan: the name of the dictionary's set of sources on Neuronpedia.
      prompt: the text of the prompt. None: the texts of its tokens together.
    """
    graph = pruned.graph
    if graph.texts is None or graph.logit_texts is None:
        raise UserError("the viewer shows the texts of tokens: give them with graph.with_texts(texts, logit_texts)")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", slug) or not scan:
        raise UserError(f"slug={slug!r}, scan={scan!r}: a slug has letters, digits, '-', '_' and '.'; scan is needed")
    kept = np.flatnonzero(pruned.nodes).tolist()
    rows, columns = np.nonzero(pruned.edges)
    target_numbers = np.r_[0 : graph.n_features, graph.logit_nodes.start : graph.n_nodes]
    targets = target_numbers[rows].tolist()
    linked = {*columns.tolist(), *targets}
    ids = _ids([graph.node(i) for i in kept], len(graph.tokens), graph.tokens.tolist(), graph.n_layers)
    by_number = dict(zip(kept, ids))
    nodes = []
    for number, (node_id, js_id) in by_number.items():
        node = graph.node(number)
        if number in linked or isinstance(node, (Token, Logit)):
            described = _described(node, number, pruned)
            nodes.append({"node_id": node_id, "jsNodeId": js_id, **described})
    links = [
        {"source": by_number[s][0], "target": by_number[t][0], "weight": float(graph.weights[row, s])}
        for row, s, t in zip(rows.tolist(), columns.tolist(), targets)
        if s in by_number and t in by_number
    ]
    metadata = {
        "slug": slug,
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": list(graph.texts),
        "prompt": "".join(graph.texts) if prompt is None else prompt,
        "node_threshold": pruned.node_threshold,
        "schema_version": 1,
    }
    view = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": view, "nodes": nodes, "links": links}


def write_viewer_graph(
    pruned: Pruned, directory: Path | str, *, slug: str, scan: str, prompt: str | None = None
) -> Path:
    """Write `<slug>.json`, and add the graph to `graph-metadata.json` in the same directory.

    The arguments are those of `viewer_graph`. Returns the path of the graph's file.
    """
    values = viewer_graph(pruned, slug=slug, scan=scan, prompt=prompt)
    directory = make_directory(Path(directory))
    index = directory / "graph-metadata.json"
    known = parse_json(read_bytes(index), str(index)) if index.exists() else {"graphs": []}
    graphs = known.get("graphs") if isinstance(known, dict) else None
    if not isinstance(graphs, list) or not all(isinstance(one, dict) for one in graphs):
        raise UserError(f"{index} is no list of graphs: remove it, or choose another directory")
    graphs = [one for one in graphs if one.get("slug") != slug] + [values["metadata"]]
    for path, content in ((directory / f"{slug}.json", values), (index, {"graphs": graphs})):
        atomic_write(path, json.dumps(content, indent=2, allow_nan=False))
    return directory / f"{slug}.json"


def _ids(nodes: list[Node], n_pos: int, tokens: list[int], n_layers: int) -> list[tuple[str, str]]:
    """(node_id, jsNodeId) of each node."""
    found: list[tuple[str, str]] = []
    features: set[str] = set()
    for node in nodes:
        match node:
            case Feature(layer, pos, feature):
                found.append((f"{layer}_{feature}_{pos}", f"{layer}_{feature}-0"))
                features.add(found[-1][0])
            case Error(layer, pos):
                name = f"0_{layer}_{pos}"
                found.append((f"{name}_error" if name in features else name, f"{layer}_{pos}-0"))
            case Token(pos):
                found.append((f"E_{tokens[pos]}_{pos}", f"E_{tokens[pos]}-{pos}"))
            case Logit(token):
                found.append((f"{n_layers + 1}_{token}_{n_pos - 1}", f"L_{token}-{n_pos - 1}"))
    return found


def _described(node: Node, number: int, pruned: Pruned) -> dict[str, Any]:
    """The entries of a node besides its ids."""
    graph = pruned.graph
    common = {"token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0, "clerp": ""}
    common |= {"influence": float(pruned.cumulative[number]), "activation": None}
    match node:
        case Feature(layer, pos, feature):
            paired = (layer + feature) * (layer + feature + 1) // 2 + feature  # Cantor's pairing function
            activation = float(graph.activation[number])
            own = {"feature": paired, "layer": str(layer), "ctx_idx": pos, "feature_type": "cross layer transcoder"}
            return common | own | {"activation": activation}
        case Error(layer, pos):
            return common | {
                "feature": -1, "layer": str(layer), "ctx_idx": pos, "feature_type": "mlp reconstruction error",
            }  # fmt: skip
        case Token(pos):
            return common | {"feature": pos, "layer": "E", "ctx_idx": pos, "feature_type": "embedding"}
        case Logit(token):
            i = number - graph.logit_nodes.start
            p, text = float(graph.logit_probabilities[i]), (graph.logit_texts or ())[i]
            return common | {
                "feature": token, "layer": str(graph.n_layers + 1), "ctx_idx": len(graph.tokens) - 1,
                "feature_type": "logit", "token_prob": p, "is_target_logit": i == 0,
                "clerp": f'Output "{text}" (p={p:.3f})', "influence": None,
            }  # fmt: skip
