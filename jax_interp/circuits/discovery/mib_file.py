"""The graph JSON of MIB and EAP-IG, in and out (hannamw/MIB-circuit-track, circuits/ioi-eap-ig.json).

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"a0.h1": {"in_graph": true}, ...},
     "edges": {"input->a0.h1<q>": {"score": -0.0375, "in_graph": true}, ...}}

    write_mib("importances.json", units, scores, keep, d_model=768)
    found = read_mib("importances.json")            found.units, found.scores [unit], found.keep [unit]

The benchmark has a key and a value input for each query head. In a model with grouped heads one input serves a group:
it is written once for each head of the group, and read as one, with the mean of the scores.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.circuits.discovery.selection import checked_scores
from jax_interp.circuits.discovery.units import EdgeUnits
from jax_interp.circuits.graph import LATEST, Graph, Part
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json

SIZES = ("n_layers", "n_heads", "d_model")
TARGET = re.compile(r"a(\d+)\.h(\d+)<([qkv])>")


@dataclasses.dataclass(frozen=True, eq=False)
class MibCircuit:
    """What a file of MIB says.

    Args:
      units: the edges.
      scores: the score of each edge; None if the file has none.
      keep: whether each edge is in the circuit.
      node_scores: the scores of nodes by name, where the file has them.
      d_model: the width of the residual stream.
    """

    units: EdgeUnits
    scores: Float[np.ndarray, " unit"] | None
    keep: Bool[np.ndarray, " unit"]
    node_scores: dict[str, float]
    d_model: int


def mib_graph(n_layers: int, n_heads: int, parallel: bool = False, kv_heads: int | None = None) -> Graph:
    """The graph of a transformer of these sizes: equal to `residual_graph` of such a model.

    Args:
      n_layers: the number of blocks, each with attention and an MLP.
      n_heads: the number of query heads of a block.
      parallel: whether attention and the MLP of a block read the same stream.
      kv_heads: the number of key/value heads; None: as many as query heads.
    """
    sources, targets = [Part("blocks.0.resid_pre", ("input",), -1)], []
    groups = kv_heads or n_heads
    for layer in range(n_layers):
        block, now = f"blocks.{layer}", 4 * layer
        for kind, heads in (("q", n_heads), ("k", groups), ("v", groups)):
            names = tuple(f"a{layer}.h{i}<{kind}>" for i in range(heads))
            targets.append(Part(f"{block}.{kind}_input", names, now, "head" if kind == "q" else "kv_head"))
        heads = tuple(f"a{layer}.h{i}" for i in range(n_heads))
        sources.append(Part(f"{block}.attn.result", heads, now + 1, "head"))
        targets.append(Part(f"{block}.mlp_in", (f"m{layer}",), now if parallel else now + 2))
        sources.append(Part(f"{block}.mlp_out", (f"m{layer}",), now + 3))
    targets.append(Part(f"blocks.{n_layers - 1}.resid_post", ("logits",), LATEST))
    return Graph(tuple(sources), tuple(targets))


def write_mib(
    path: Path | str,
    units: EdgeUnits,
    scores: Float[np.ndarray | Array, " unit"],
    keep: Bool[np.ndarray, " unit"],
    *,
    d_model: int,
) -> Path:
    """Write a circuit as the benchmark reads it.

    A node is in the circuit if an edge of the circuit goes out of it and, unless it is the input, one goes into it. The
    logits always are.

    Args:
      path: the file to create or replace.
      units: the edges of `residual_graph`.
      scores: the score of each edge; [target, source] is accepted.
      keep: the edges of the circuit.
      d_model: the width of the residual stream.

    Raises:
      UserError: the scores do not fit, or the graph has other nodes than heads and MLPs.
    """
    values, kept = checked_scores(units, scores), np.asarray(keep, bool)
    if kept.shape != (len(units),):
        raise UserError(f"there are {len(units)} edges, and a circuit of shape {kept.shape}")
    matrix, names = units.matrix(kept), units.graph.source_names
    entered = np.any(np.any(matrix, axis=1)[:, None] & units.inputs, axis=0) | ~np.any(units.inputs, axis=0)
    inside = np.any(matrix, axis=0) & entered
    nodes = {name: {"in_graph": bool(one)} for name, one in zip(names, inside)}
    edges = {}
    for (source, target), score, one in zip(_ends(units), values.tolist(), kept.tolist()):
        for reader in _readers(units.graph, target):
            edges[f"{source}->{reader}"] = {"score": score, "in_graph": one}
    cfg = {**_sizes(units.graph), "d_model": int(d_model)}
    text = json.dumps({"cfg": cfg, "nodes": {**nodes, "logits": {"in_graph": True}}, "edges": edges}, allow_nan=False)
    return atomic_write(path, text)


def read_mib(path: Path | str, graph: Graph | None = None) -> MibCircuit:
    """Read a circuit of the benchmark, strictly.

    Args:
      path: the file.
      graph: the graph of the model that the circuit is for (`residual_graph`). None: that of the sizes in the file.

    Raises:
      UserError: an entry, a node or an edge is unknown or missing, or the values are of another kind; the file fits
        another model; heads that share a key or value input disagree.
    """
    found = read_json(path)
    _only(found, ("cfg", "nodes", "edges"), f"{path}", all_needed=True)
    cfg = found["cfg"]
    _only(cfg, (*SIZES, "parallel_attn_mlp"), f"cfg of {path}", all_needed=True)
    for name in SIZES:
        if type(cfg[name]) is not int or not 0 < cfg[name] <= 1 << 20:
            raise UserError(f"cfg of {path}: {name} should be a positive number, it is {cfg[name]!r}")
    if type(cfg["parallel_attn_mlp"]) is not bool:
        raise UserError(f"cfg of {path}: parallel_attn_mlp should be true or false, it is {cfg['parallel_attn_mlp']!r}")
    if graph is None:
        if cfg["n_layers"] * cfg["n_heads"] > 1 << 14:
            raise UserError(f"cfg of {path}: {cfg['n_layers']} layers of {cfg['n_heads']} heads is no model we know")
        graph = mib_graph(cfg["n_layers"], cfg["n_heads"], cfg["parallel_attn_mlp"])
    ours = _sizes(graph)
    if differ := [name for name in ours if ours[name] != cfg[name]]:
        raise UserError(f"{path} is for a model with {differ[0]}={cfg[differ[0]]}, this one has {ours[differ[0]]}")
    units = EdgeUnits(graph)
    scores, keep = _edges(found["edges"], units, str(path))
    return MibCircuit(units, scores, keep, _nodes(found["nodes"], graph, str(path)), cfg["d_model"])


def _edges(
    edges: Any, units: EdgeUnits, path: str
) -> tuple[Float[np.ndarray, " unit"] | None, Bool[np.ndarray, " unit"]]:
    wanted = [[f"{s}->{reader}" for reader in _readers(units.graph, t)] for s, t in _ends(units)]
    _only(edges, [name for group in wanted for name in group], f"edges of {path}", all_needed=True)
    scored = None
    scores, keep = np.zeros(len(units)), np.zeros(len(units), bool)
    for i, group in enumerate(wanted):
        inside, values = set(), []
        for name in group:
            entry = edges[name]
            _only(entry, ("score", "in_graph"), f"edge {name} of {path}")
            if type(entry.get("in_graph")) is not bool:
                raise UserError(
                    f"edge {name} of {path}: in_graph should be true or false, it is {entry.get('in_graph')!r}"
                )
            if scored is None:
                scored = "score" in entry
            if scored != ("score" in entry) or (scored and type(entry["score"]) not in (int, float)):
                raise UserError(f"edge {name} of {path}: score should be a number, as for the other edges")
            inside.add(entry["in_graph"])
            values.append(entry.get("score", 0.0))
        if len(inside) > 1:
            raise UserError(f"{path}: the heads {', '.join(group)} share one input in this model, and in_graph differs")
        keep[i], scores[i] = inside.pop(), np.mean(values)
    return (scores if scored else None), keep


def _nodes(nodes: Any, graph: Graph, path: str) -> dict[str, float]:
    _only(nodes, (*graph.source_names, "logits"), f"nodes of {path}")
    if missing := [name for name in graph.source_names if name not in nodes]:
        raise UserError(f"nodes of {path}: {missing[0]!r} is missing")
    scores = {}
    for name, entry in nodes.items():
        if isinstance(entry, Mapping) and (set(entry) & {"neurons", "neurons_scores"}):
            raise UserError(
                f"node {name} of {path} has entries for single neurons of the residual stream (MIB's neuron level). "
                "This reader takes edges and nodes only"
            )
        _only(entry, ("score", "in_graph"), f"node {name} of {path}")
        if type(entry.get("in_graph")) is not bool:
            raise UserError(f"node {name} of {path}: in_graph should be true or false, it is {entry.get('in_graph')!r}")
        if "score" in entry:
            if type(entry["score"]) not in (int, float):
                raise UserError(f"node {name} of {path}: score should be a number, it is {entry['score']!r}")
            scores[name] = float(entry["score"])
    return scores


def _only(entry: Any, known: Any, where: str, *, all_needed: bool = False) -> None:
    """Refuse anything but an object with these keys."""
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} should be an object, it is {type(entry).__name__}")
    known_set = set(known)
    if unknown := [name for name in entry if name not in known_set]:
        raise UserError(f"{where}: {unknown[0]!r:.80} is not known here{_more(unknown)}")
    if all_needed and (missing := [name for name in known if name not in entry]):
        raise UserError(f"{where}: {missing[0]!r} is missing{_more(missing)}")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if names[1:] else ""


def _ends(units: EdgeUnits) -> list[tuple[str, str]]:
    targets, sources = units.places
    graph = units.graph
    return [(graph.source_names[s], graph.target_names[t]) for t, s in zip(targets.tolist(), sources.tolist())]


def _sizes(graph: Graph) -> dict[str, Any]:
    heads = [part for part in graph.sources if part.axis == "head"]
    mlps = {part.names[0]: part.time for part in graph.targets if part.axis is None and part.names != ("logits",)}
    layers = {part.address.split(".")[1] for part in graph.targets}
    counts = {len(part.names) for part in heads}
    if len(counts) != 1 or any(not re.fullmatch(r"input|a\d+\.h\d+|m\d+", name) for name in graph.source_names):
        raise UserError("MIB's format has nodes for heads and MLPs, and the same number of heads in each layer")
    parallel = any(time % 4 == 0 for time in mlps.values())
    return {"n_layers": len(layers), "n_heads": counts.pop(), "parallel_attn_mlp": parallel}


def _readers(graph: Graph, target: str) -> list[str]:
    """The names that the benchmark has for a target: with grouped heads, one for each head of the group."""
    match = TARGET.fullmatch(target)
    if match is None:
        return [target]
    layer, head, kind = int(match[1]), int(match[2]), match[3]
    heads = _sizes_of_layer(graph, layer, "attn.result", sources=True)
    shared = heads // _sizes_of_layer(graph, layer, f"{kind}_input", sources=False)
    return [f"a{layer}.h{head * shared + i}<{kind}>" for i in range(shared)]


def _sizes_of_layer(graph: Graph, layer: int, name: str, *, sources: bool) -> int:
    parts = graph.sources if sources else graph.targets
    return next(len(part.names) for part in parts if part.address == f"blocks.{layer}.{name}")
