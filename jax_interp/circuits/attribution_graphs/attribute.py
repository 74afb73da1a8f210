"""Attribution graphs over transcoders and cross-layer transcoders (Ameisen et al. 2025, "Circuit Tracing").

    local = replacement(model, reads, writes, clt)
    graph = attribution_graph(local, tokens)
    pruned, quality = prune(graph), scores(graph)

The graph is of the linear model in which attention patterns, norm scales and MLP outputs have the values of this
prompt (linear.py). An edge is the source's activation times its decoders, times the derivative of the target's
pre-activation. `intervene(..., how="direct")` changes a target by exactly this weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jax_interp.circuits.attribution_graphs.clean_run import CleanRun, clean_run
from jax_interp.circuits.attribution_graphs.graph import AttributionGraph
from jax_interp.circuits.attribution_graphs.influence import influence_of_sources
from jax_interp.circuits.attribution_graphs.linear import (
    LinearModel,
    Targets,
    linear_model,
    rows_of_features,
    rows_of_logits,
)
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.replacement import Replacement


@dataclasses.dataclass(frozen=True)
class Limits:
    """How large the graph is, and what it may cost.

    Args:
      max_logits: the largest number of logit nodes.
      probability: logits are added in descending order of probability until they have this much together.
      max_features: the largest number of feature nodes. They are chosen by their influence on the logits, as far as the
        rows computed so far show it. None: all active features.
      batch: the number of targets of one backward pass. Memory grows with it.
      update: the number of batches after which features are ranked again, if `max_features` limits them.
      programs: the number of programs that are compiled for features. Each stops at another depth of the model.
      without_nodes: positions whose features and errors are no nodes; what their MLPs write is a constant. Dictionaries
        are often not trained on the first token of a text, and circuit-tracer leaves it out: `(0,)`.
    """

    max_logits: int = 10
    probability: float = 0.95
    max_features: int | None = None
    batch: int = 64
    update: int = 4
    programs: int = 4
    without_nodes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_logits", "batch", "update", "programs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.probability <= 1:
            raise UserError(f"probability={self.probability} must be above 0 and at most 1")
        if self.max_features is not None and self.max_features < 1:
            raise UserError(f"max_features={self.max_features} must be at least 1, or None for all active features")


def attribution_graph(
    local: Replacement,
    tokens: Int[Array | np.ndarray, " pos"] | Sequence[int],
    limits: Limits | None = None,
    *,
    logits: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    spill: Path | str | None = None,
    progress: Callable[[int, int], bool | None] = lambda done, total: None,
) -> AttributionGraph:
    """The attribution graph of one prompt.

    Args:
      local: a model and its dictionary, as `replacement(model, reads, writes, dictionary)` returns them. Every MLP of
        the model needs a dictionary.
      tokens: the prompt, without padding.
      limits: how large the graph is.
      logits: the token ids of the logit nodes. None: the most probable ones.
      mesh: the devices that share the targets of each batch. Arrays that are on this mesh stay as they are placed, so
        weights may be sharded; all others are copied to every device.
      spill: a file that does not exist, in which the rows of the graph are kept instead of in memory.
      progress: called with the number of finished and of all rows of features. If it returns True, the graph ends here:
        it has the features whose rows are finished.

    Returns:
      The whole graph. `prune` makes it small enough to look at.

    Raises:
      UserError: the prompt, a position or a token id is not valid, an MLP has no dictionary, or the dictionary is not
        linear where it is active.
    """
    limits = limits or Limits()
    clean = clean_run(local, jnp.asarray(tokens), limits.without_nodes)
    ids, probabilities = _logit_nodes(clean.logits, limits, logits)
    rows = _Rows(linear_model(local, clean), clean, limits, mesh, spill, ids, probabilities)
    for done in rows.expand():
        if progress(done, rows.wanted):
            break
    return rows.graph()


class _Rows:
    """The rows of the graph, as they are computed: features first, then logits.

    If all active features are wanted, the row of a feature is its number. Otherwise features get rows in the order in
    which they are visited.
    """

    def __init__(
        self,
        linear: LinearModel,
        clean: CleanRun,
        limits: Limits,
        mesh: Mesh | None,
        spill: Path | str | None,
        ids: Int[np.ndarray, " logit"],
        probabilities: Float[np.ndarray, " logit"],
    ):
        self.devices = None if mesh is None else Mesh(mesh.devices, mesh.axis_names)  # with automatic axes
        self.linear = linear if self.devices is None else _on_devices(linear, self.devices)
        self.clean, self.limits = clean, limits
        self.ids, self.probabilities = ids, probabilities
        n, layers = len(clean.active), len(linear.reads)
        self.wanted = n if limits.max_features is None else min(limits.max_features, n)
        share = 1 if mesh is None else mesh.size  # each device has as many targets
        self.batch = -(-min(limits.batch, max(self.wanted, 1)) // share) * share
        self.stops = sorted({-(-(i + 1) * layers // limits.programs) - 1 for i in range(limits.programs)} - {-1})
        self.logit_values, rows = (np.asarray(part) for part in rows_of_logits(self.linear, jnp.asarray(ids)))
        shape = (self.wanted + len(ids), n + (layers + 1) * len(clean.tokens))
        self.weights, self.sums = _matrix(shape, rows.dtype, spill), np.zeros(shape[0])
        self._store(np.arange(self.wanted, shape[0]), rows)
        self.visited = np.zeros(0, np.int64)

    @property
    def is_whole(self) -> bool:
        """Whether all active features are wanted."""
        return self.wanted == len(self.clean.active)

    @property
    def rows(self) -> Int[np.ndarray, " visited"]:
        """The row of each visited feature."""
        return self.visited if self.is_whole else np.arange(len(self.visited))

    def expand(self) -> Iterator[int]:
        """Compute rows of features, those of most influence first. Yields the number of rows after each batch."""
        yield 0
        while len(self.visited) < self.wanted:
            # If all features are wanted, the order matters only to a graph that is ended early. Ranking reads all rows,
            # so it is then done each time their number has doubled.
            size = self.limits.update * self.limits.batch
            size = min(max(size, len(self.visited)) if self.is_whole else size, self.wanted - len(self.visited))
            queue = self._most_influential(size)
            queue = queue[np.argsort(self.clean.active.layer[queue], kind="stable")]
            for start in range(0, len(queue), self.batch):
                self._visit(queue[start : start + self.batch])
                yield len(self.visited)

    def graph(self) -> AttributionGraph:
        """The graph of the rows that are computed."""
        clean, n = self.clean, len(self.clean.active)
        order = np.argsort(self.visited)
        selected = self.visited[order]
        rows = np.r_[self.rows[order], np.arange(self.wanted, len(self.weights))]
        values = np.r_[clean.active.activation[selected], self.logit_values]
        totals = np.asarray([self.weights[row].sum(dtype=np.float64) for row in rows])
        weights = self.weights
        if len(rows) < len(weights) or not self.is_whole:
            weights = weights[rows[:, None], np.r_[selected, np.arange(n, weights.shape[1])][None]]
        return AttributionGraph(
            np.asarray(clean.tokens), clean.active, selected, weights, values, values - totals, self.ids,
            self.probabilities, len(self.linear.reads), len(clean.logits), self.limits.without_nodes,
        )  # fmt: skip

    def _most_influential(self, size: int) -> Int[np.ndarray, " feature"]:
        """Features of which no row is computed, in descending order of influence."""
        layers, k, n = self.clean.active.layer[self.visited], len(self.ids), len(self.clean.active)
        influence, _ = influence_of_sources(
            self.weights,
            np.r_[self.rows, np.arange(self.wanted, self.wanted + k)],
            np.r_[self.visited, np.full(k, -1)],
            np.r_[layers, np.full(k, len(self.linear.reads))],
            np.r_[np.zeros(len(self.visited)), self.probabilities],
            self.sums,
        )
        ranked = np.argsort(-influence[:n], kind="stable")
        fresh = np.ones(n, bool)
        fresh[self.visited] = False
        return ranked[fresh[ranked]][:size]

    def _visit(self, features: Int[np.ndarray, " feature"]) -> None:
        active = self.clean.active
        padded = np.resize(features, self.batch)  # one shape of batches, so that nothing is compiled again
        targets = Targets(*(jnp.asarray(part[padded]) for part in (active.layer, active.pos, active.feature)))
        if self.devices is not None:
            targets = jax.device_put(targets, NamedSharding(self.devices, P(self.devices.axis_names)))
        stop = next(one for one in self.stops if one >= active.layer[features].max())
        rows = np.asarray(rows_of_features(self.linear, targets, stop=stop))[: len(features)]
        self.visited = np.r_[self.visited, features]
        self._store(self.rows[-len(features) :], rows)

    def _store(self, places: Int[np.ndarray, " row"], rows: Float[np.ndarray, "row source"]) -> None:
        if not np.isfinite(rows).all():
            raise UserError("an edge of the graph is not finite: the gradients of the model overflow on this prompt")
        self.weights[places] = rows
        self.sums[places] = np.abs(rows).sum(axis=1, dtype=np.float64)


def _on_devices(linear: LinearModel, mesh: Mesh) -> LinearModel:
    """The arrays on a mesh: as they are placed if they are on its devices, else on each device."""

    def put(leaf: Any) -> Any:
        placed, spec = getattr(leaf, "sharding", None), P()
        if isinstance(placed, NamedSharding) and placed.device_set == set(mesh.devices.flat):
            spec = placed.spec if placed.mesh.axis_names == mesh.axis_names else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(put, linear)


def _matrix(shape: tuple[int, int], dtype: Any, spill: Path | str | None) -> np.ndarray:
    """An empty matrix in memory or in a new file."""
    if spill is None:
        return np.zeros(shape, dtype)
    if Path(spill).exists():
        raise UserError(f"{spill} exists: give the path of a new file for the rows of the graph")
    try:
        return np.lib.format.open_memmap(spill, mode="w+", dtype=dtype, shape=shape)
    except OSError as error:
        raise UserError(f"the rows of the graph cannot be kept in {spill}: {error}") from error


def _logit_nodes(
    logits: Float[np.ndarray, " vocab"], limits: Limits, given: Sequence[int] | None
) -> tuple[Int[np.ndarray, " logit"], Float[np.ndarray, " logit"]]:
    """(the token ids of the logit nodes, their probabilities)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    p = shifted / shifted.sum()
    if given is None:
        order = np.argsort(-p, kind="stable")[: limits.max_logits]
        ids = order[: int(np.searchsorted(np.cumsum(p[order]), limits.probability)) + 1]
    else:
        ids = np.asarray(given, np.int64).reshape(-1)
        if not len(ids) or len(set(ids.tolist())) < len(ids) or (ids < 0).any() or (ids >= len(p)).any():
            raise UserError(f"logits={list(given)}: give different token ids from 0 to {len(p) - 1}")
    return ids, p[ids]
