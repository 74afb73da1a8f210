"""An attribution graph as files: its arrays as safetensors, and a description as JSON. Both carry a digest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jax_interp.circuits.attribution_graphs.clean_run import ActiveFeatures
from jax_interp.circuits.attribution_graphs.graph import AttributionGraph
from jax_interp.core import config_json
from jax_interp.core.errors import UserError
from jax_interp.core.tensor_files import read_described, write_described

STEM, FORMAT = "attribution_graph", 1
ACTIVE = ("layer", "pos", "feature", "activation")
ARRAYS = ("tokens", "selected", "weights", "values", "biases", "logit_tokens", "logit_probabilities")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the JSON file says of a graph, apart from its arrays. The fields are those of `AttributionGraph`."""

    n_layers: int
    n_vocab: int
    without_nodes: tuple[int, ...] = ()
    texts: tuple[str, ...] | None = None
    logit_texts: tuple[str, ...] | None = None


def save_attribution_graph(directory: Path | str, graph: AttributionGraph) -> Path:
    """Write `attribution_graph.safetensors` and `attribution_graph.json`. Existing files are replaced.

    Args:
      directory: created if it is missing.
      graph: the graph.

    Returns:
      The directory.
    """
    arrays = {name: np.asarray(getattr(graph, name)) for name in ARRAYS}
    arrays |= {f"active.{name}": getattr(graph.active, name) for name in ACTIVE}
    names = [field.name for field in dataclasses.fields(Manifest)]
    manifest = Manifest(**{name: getattr(graph, name) for name in names})
    return write_described(directory, STEM, arrays, {"format": FORMAT, "graph": config_json.to_json(manifest)})


def load_attribution_graph(directory: Path | str) -> AttributionGraph:
    """Read what `save_attribution_graph` wrote.

    Raises:
      UserError: a file is missing, was changed or does not fit the other, or it is not a graph.
    """
    description, arrays = read_described(directory, STEM, formats={FORMAT}, what="attribution graph")
    wanted = {*ARRAYS, *(f"active.{name}" for name in ACTIVE)}
    if arrays.keys() != wanted:
        names = ", ".join(sorted(wanted ^ arrays.keys()))
        raise UserError(f"{Path(directory) / STEM}.safetensors is no attribution graph: {names} missing or too many")
    if wrong := [name for name, array in arrays.items() if array.ndim != (2 if name == "weights" else 1)]:
        raise UserError(f"{Path(directory) / STEM}.safetensors is no attribution graph: the shape of {wrong[0]}")
    manifest = config_json.from_json(Manifest, description.get("graph"), "attribution graph")
    active = ActiveFeatures(*(arrays[f"active.{name}"] for name in ACTIVE))
    fields = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(Manifest)}
    graph = AttributionGraph(**{name: arrays[name] for name in ARRAYS}, active=active, **fields)
    _check(graph, str(Path(directory) / STEM))
    return graph


def _check(graph: AttributionGraph, where: str) -> None:
    n, pos = len(graph.active.layer), len(graph.tokens)
    integers = (graph.tokens, graph.selected, graph.logit_tokens, graph.active.layer, graph.active.pos)
    numbers = (graph.weights, graph.values, graph.biases, graph.logit_probabilities, graph.active.activation)
    fine = all(one.dtype.kind in "iu" for one in (*integers, graph.active.feature))
    fine &= all(one.dtype.kind == "f" for one in numbers)
    fine &= all(one.shape == (n,) for one in (graph.active.pos, graph.active.feature, graph.active.activation))
    fine &= graph.biases.shape == graph.values.shape and graph.logit_probabilities.shape == graph.logit_tokens.shape
    fine = fine and all(np.isfinite(one).all() for one in numbers)
    for indices, size in (
        (graph.selected, n),
        (graph.active.layer, graph.n_layers),
        (graph.active.pos, pos),
        (graph.logit_tokens, graph.n_vocab),
        (graph.tokens, graph.n_vocab),
        (np.asarray(graph.without_nodes, int), pos),
    ):
        fine = fine and not ((indices < 0) | (indices >= size)).any()
    fine = fine and bool((np.diff(graph.selected.astype(np.int64)) > 0).all())
    fine &= graph.texts is None or len(graph.texts) == pos
    fine &= graph.logit_texts is None or len(graph.logit_texts) == len(graph.logit_tokens)
    if not fine:
        raise UserError(f"{where} is not an attribution graph: its arrays do not fit each other")
