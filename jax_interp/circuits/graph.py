"""`Graph`: the parts of a model that write to the residual stream, the inputs that read it, and the edges between them.

A *source* writes to the stream: the embedding ("input"), a head ("a0.h1"), an MLP ("m0"). A *target* reads it: the
query, key or value input of a head ("a1.h2<q>"), the input of an MLP ("m0"), the input of the last norm ("logits"). The
input of a target is the sum of all earlier sources, plus biases. So there is an edge from each source to each later
target. The names are those of EAP-IG and of the MIB benchmark.

    graph = residual_graph(model)
    graph.n_edges                                        # 32,491 for GPT-2 small
    Circuit.of(graph, ["input->a0.h1<v>", "a0.h1->logits"])
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery.contract import Model
from jax_interp.surgery.verbs import survey

LATEST = 1 << 30
"""The time of the logits: after everything else."""


@dataclasses.dataclass(frozen=True)
class Part:
    """The nodes that one named value of one layer stands for.

    Args:
      address: the address of the value, of a single layer: "blocks.3.attn.result".
      names: the names of the nodes.
      time: when the value exists in the forward pass. An edge goes from a source to a target of a later time.
      axis: the axis of the value along which the nodes are cut: "head" or "kv_head". None: one node is the whole value.
    """

    address: str
    names: tuple[str, ...]
    time: int
    axis: str | None = None


@dataclasses.dataclass(frozen=True)
class Graph:
    """Sources, targets, and the edges that can exist. It is static and hashable.

    Args:
      sources: the parts that write, in the order of the forward pass.
      targets: the parts that read, in the order of the forward pass.
    """

    sources: tuple[Part, ...]
    targets: tuple[Part, ...]

    @functools.cached_property
    def source_names(self) -> tuple[str, ...]:
        """The name of each source: the labels of the last axis of `Circuit.edges`."""
        return tuple(name for part in self.sources for name in part.names)

    @functools.cached_property
    def target_names(self) -> tuple[str, ...]:
        """The name of each target: the labels of the first axis of `Circuit.edges`."""
        return tuple(name for part in self.targets for name in part.names)

    @functools.cached_property
    def exists(self) -> Bool[np.ndarray, "target source"]:
        """True where the source is earlier than the target."""
        written = np.concatenate([np.full(len(part.names), part.time) for part in self.sources])
        read = np.concatenate([np.full(len(part.names), part.time) for part in self.targets])
        earlier = written[None, :] < read[:, None]
        earlier.flags.writeable = False
        return earlier

    @property
    def shape(self) -> tuple[int, int]:
        """(the number of targets, the number of sources)."""
        return len(self.target_names), len(self.source_names)

    @property
    def n_edges(self) -> int:
        """The number of edges that exist."""
        return int(self.exists.sum())

    def edge_names(self) -> list[str]:
        """The name of each edge that exists, "a0.h1->a1.h2<q>", target by target."""
        targets, sources = np.nonzero(self.exists)
        return [f"{self.source_names[s]}->{self.target_names[t]}" for t, s in zip(targets.tolist(), sources.tolist())]

    def index(self, edge: str) -> tuple[int, int]:
        """(the row of the target, the column of the source) of an edge such as "a0.h1->a1.h2<q>".

        Raises:
          UserError: there is no such source, target or edge.
        """
        if not isinstance(edge, str) or edge.count("->") != 1:
            raise UserError(f"{edge!r} is no edge: write source->target, such as 'input->a0.h1<q>' or 'm0->logits'")
        source, target = (end.strip() for end in edge.split("->"))
        for name, known, kind in ((source, self._column, "source"), (target, self._row, "target")):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3) or list(known)[:3]
                raise UserError(f"{edge!r}: the graph has no {kind} {name!r}. It has {', '.join(near)}, ...")
        t, s = self._row[target], self._column[source]
        if not self.exists[t, s]:
            raise UserError(f"{edge!r} does not exist: {source} is not computed before {target} reads the stream")
        return t, s

    @functools.cached_property
    def _column(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.source_names)}

    @functools.cached_property
    def _row(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.target_names)}

    def __repr__(self) -> str:
        targets, sources = self.shape
        return f"Graph({sources} sources, {targets} targets, {self.n_edges} edges)"


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Circuit:
    """A part of a graph: which of its edges are kept. A pytree, so circuits of different sizes can be mapped over.

    Args:
      edges: True or 1 for an edge of the circuit, False or 0 for another. A number between interpolates. Entries where
        the graph has no edge are ignored. With a third axis, each position has its own edges.
      graph: the graph.
    """

    edges: Bool[Array, "target source *pos"] | Float[Array, "target source *pos"]
    graph: Graph = dataclasses.field(metadata={"static": True})

    @classmethod
    def full(cls, graph: Graph) -> Circuit:
        """All edges: the model itself."""
        return cls(jnp.asarray(graph.exists), graph)

    @classmethod
    def empty(cls, graph: Graph) -> Circuit:
        """No edges."""
        return cls(jnp.zeros(graph.shape, bool), graph)

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[str]) -> Circuit:
        """The circuit of these edges, named as in `Graph.edge_names`. Raises `UserError` for an unknown edge."""
        if isinstance(edges, str):
            raise UserError(f"give a list of edges: [{edges!r}]")
        kept = np.zeros(graph.shape, bool)
        for edge in edges:
            kept[graph.index(edge)] = True
        return cls(jnp.asarray(kept), graph)

    @classmethod
    def largest(
        cls, graph: Graph, scores: Float[Array, "target source"], n: int | Int[Array, ""], *, absolute: bool = True
    ) -> Circuit:
        """The n edges of largest score. Of equal scores, the first in the order of the graph are taken.

        Args:
          graph: the graph.
          scores: a score for each edge. NaN comes last.
          n: the number of edges. It can be traced, so `jax.vmap` makes circuits of many sizes.
          absolute: compare absolute scores.
        """
        scores = jnp.asarray(scores)
        if scores.shape != graph.shape:
            raise UserError(f"scores have shape {scores.shape}, the graph has {graph.shape} (targets, sources)")
        scores = jnp.abs(scores) if absolute else scores
        lowest = jnp.asarray(-jnp.inf, scores.dtype)
        ranked = jnp.where(jnp.asarray(graph.exists) & ~jnp.isnan(scores), scores, lowest).reshape(-1)
        order = jnp.argsort(-ranked, stable=True)
        rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
        return cls((rank < n).reshape(graph.shape) & jnp.asarray(graph.exists), graph)

    @property
    def removed(self) -> Float[Array, "target source *pos"]:
        """The weight of the ablated value on each edge: 1 - edges; 0 where there is no edge. In float32 at least."""

        edges = self.edges
        if edges.shape[:2] != self.graph.shape or edges.ndim > 3:
            raise UserError(
                f"the edges have shape {edges.shape}, the graph has {self.graph.shape[0]} targets and "
                f"{self.graph.shape[1]} sources: give edges of shape {self.graph.shape}"
            )
        dtype = edges.dtype if jnp.issubdtype(edges.dtype, jnp.floating) else jnp.float32
        exists = jnp.asarray(self.graph.exists).reshape(*self.graph.shape, *(1,) * (edges.ndim - 2))
        edges = edges.astype(jnp.promote_types(dtype, jnp.float32))
        return jnp.where(exists, 1 - edges, jnp.zeros_like(edges))

    @property
    def n_edges(self) -> Int[Array, ""] | Float[Array, ""]:
        """The number of kept edges; the sum of the weights if they are real numbers."""
        exists = jnp.asarray(self.graph.exists).reshape(*self.graph.shape, *(1,) * (self.edges.ndim - 2))
        return jnp.sum(jnp.where(exists, self.edges, jnp.zeros_like(self.edges)))

    def edge_names(self) -> list[str]:
        """The names of the edges that are kept (that are not 0, at some position)."""
        kept = np.asarray(self.edges) != 0
        kept = kept.any(axis=tuple(range(2, kept.ndim))) & self.graph.exists
        sources, targets = self.graph.source_names, self.graph.target_names
        return [f"{sources[s]}->{targets[t]}" for t, s in np.argwhere(kept).tolist()]


def residual_graph(model: Model) -> Graph:
    """The graph of a transformer: "input", heads and MLPs as sources; their inputs and "logits" as targets.

    Heads have a query, a key and a value input each. In a model with grouped heads there is one key and one value input
    for each key/value head. In a parallel block the MLP does not read the heads of its own layer. The bias of the
    attention output belongs to no head: it is the same in every run.

    Args:
      model: a decoder, under surgery or not.

    Returns:
      The graph. GPT-2 small has 157 sources, 445 targets and 32,491 edges.

    Raises:
      UserError: the model does not name the values that are needed, or it has a norm after attention, so that the
        stream is not the sum of the outputs of the heads.
    """
    try:
        named = survey(model)(jnp.zeros((1, 2), jnp.int32))
    except (TypeError, ValueError) as error:
        raise UserError(f"residual_graph needs a model of tokens [batch, pos]: {error}") from error
    depth = 1 + max((int(a.split(".")[1]) for a in named if a.startswith("blocks.")), default=-1)
    if "embed" not in named or not depth or f"blocks.{depth - 1}.resid_post" not in named:
        raise UserError("residual_graph needs a model that names embed and the resid_pre and resid_post of its blocks")
    if any(address.split(".")[2:3] == ["ln1_post"] for address in named):
        raise UserError(
            "this model has a norm after attention (ln1_post), so the residual stream is not the sum of the outputs of "
            "the heads, and an edge from a head is not defined"
        )
    sources, targets = [Part("blocks.0.resid_pre", ("input",), -1)], []
    for layer in range(depth):
        block, now = f"blocks.{layer}", 4 * layer
        if f"{block}.q_input" in named:
            for kind in "qkv":
                value = named[f"{block}.{kind}_input"]
                names = tuple(f"a{layer}.h{i}<{kind}>" for i in range(value.shape[2]))
                targets.append(Part(f"{block}.{kind}_input", names, now, value.axes[2]))
            heads = named[f"{block}.attn.result"].shape[2]
            names = tuple(f"a{layer}.h{i}" for i in range(heads))
            sources.append(Part(f"{block}.attn.result", names, now + 1, "head"))
        if f"{block}.mlp_in" in named:
            parallel = f"{block}.resid_mid" not in named
            targets.append(Part(f"{block}.mlp_in", (f"m{layer}",), now if parallel else now + 2))
            sources.append(Part(f"{block}.mlp_out", (f"m{layer}",), now + 3))
        if f"{block}.q_input" not in named and f"{block}.mlp_in" not in named:
            raise UserError(f"block {layer} names neither q_input nor mlp_in, so the graph has no node there")
    targets.append(Part(f"blocks.{depth - 1}.resid_post", ("logits",), LATEST))
    return Graph(tuple(sources), tuple(targets))


def as_circuit(circuit: Circuit) -> Circuit:
    """The circuit itself. Raises `UserError` for anything else."""
    if not isinstance(circuit, Circuit):
        kind = type(circuit).__name__
        raise UserError(f"give a Circuit, not {kind}: Circuit(edges, graph), Circuit.largest(graph, scores, n)")
    return circuit
