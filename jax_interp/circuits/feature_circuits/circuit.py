"""`FeatureCircuit`: features, errors and the edges between them, as one table of nodes and one of edges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.circuits.feature_circuits.effects import FeatureEffects, Positions, node_table
from jax_interp.circuits.feature_circuits.sites import ERROR, Ablation
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.core.pytrees import register_dataclass

METRIC = "metric"
FORMAT = "jax_interp feature circuit 1"


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class FeatureCircuit:
    """Nodes and edges. `select_nodes` makes the nodes, `feature_edges` adds the edges.

    Node number n, one more than the last, is the metric. It is the target of edges only.

    Args:
      site: for each node, the number of its value in `addresses`.
      feature: the number of the latent; -1 for the error.
      pos: the position; -1 if effects are summed over positions.
      effect: the effect of ablating the node on the metric, mean over prompts.
      spread: its standard deviation over prompts.
      source: for each edge, the number of the node that it comes from.
      target: the number of the node that it goes to.
      weight: the effect of the source on the metric that goes directly to the target, mean over prompts.
      weight_spread: its standard deviation over prompts.
      addresses: the values, in the order of the forward pass.
      widths: the number of latents of each value.
      ablation: patch or zero.
      positions: sum or each.
    """

    site: Int[np.ndarray, " node"]
    feature: Int[np.ndarray, " node"]
    pos: Int[np.ndarray, " node"]
    effect: Float[np.ndarray, " node"]
    spread: Float[np.ndarray, " node"]
    source: Int[np.ndarray, " edge"]
    target: Int[np.ndarray, " edge"]
    weight: Float[np.ndarray, " edge"]
    weight_spread: Float[np.ndarray, " edge"]
    addresses: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    ablation: Ablation = dataclasses.field(metadata={"static": True})
    positions: Positions = dataclasses.field(metadata={"static": True})

    @property
    def n_nodes(self) -> int:
        """The number of nodes, without the metric."""
        return len(self.site)

    @property
    def n_edges(self) -> int:
        return len(self.source)

    def name(self, node: int) -> str:
        """A node as text: blocks.2.mlp_out/311, blocks.2.mlp_out/error, blocks.2.mlp_out/311@4, metric."""
        if node == self.n_nodes:
            return METRIC
        feature = "error" if self.feature[node] == ERROR else str(int(self.feature[node]))
        at = "" if self.pos[node] < 0 else f"@{int(self.pos[node])}"
        return f"{self.addresses[self.site[node]]}/{feature}{at}"

    def threshold(self, *, node: float = 0.0, edge: float = 0.0) -> FeatureCircuit:
        """Only nodes with |effect| > `node`, and edges with |weight| > `edge` between them."""
        kept = np.append(np.abs(self.effect) > node, True)
        renumbered = np.cumsum(kept) - 1
        edges = kept[self.source] & kept[self.target] & (np.abs(self.weight) > edge)
        nodes = {name: getattr(self, name)[kept[:-1]] for name in ("site", "feature", "pos", "effect", "spread")}
        ends = {name: renumbered[getattr(self, name)[edges]] for name in ("source", "target")}
        weights = {name: getattr(self, name)[edges] for name in ("weight", "weight_spread")}
        return dataclasses.replace(self, **nodes, **ends, **weights)

    def keep(self, length: int) -> tuple[list[Bool[np.ndarray, "pos feature"]], list[Bool[np.ndarray, " pos"]]]:
        """The nodes as masks over the latents and the error of each site. `length` is the number of positions.

        A node of a circuit that sums over positions stands for all of them.
        """
        latents = [np.zeros((length, width), bool) for width in self.widths]
        errors = [np.zeros(length, bool) for _ in self.widths]
        for site, feature, pos in zip(self.site, self.feature, self.pos, strict=True):
            at = slice(None) if pos < 0 else pos
            if feature == ERROR:
                errors[site][at] = True
            else:
                latents[site][at, feature] = True
        return latents, errors

    def edges(self) -> Iterator[tuple[str, str, float]]:
        """(source, target, weight) by name, from the largest absolute weight to the smallest."""
        for i in np.argsort(-np.abs(self.weight), kind="stable"):
            yield self.name(int(self.source[i])), self.name(int(self.target[i])), float(self.weight[i])

    def save(self, path: Path | str) -> None:
        """Write the circuit as JSON."""
        static = {f.name for f in dataclasses.fields(self) if f.metadata.get("static")}
        record: dict[str, Any] = {"format": FORMAT}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            record[field.name] = value if field.name in static else np.asarray(value).tolist()
        write_json(path, record, indent=None, nonfinite=True)

    @classmethod
    def load(cls, path: Path | str) -> FeatureCircuit:
        """Read a circuit that `save` has written. Raises UserError for anything else."""
        record = read_json(path, nonfinite=True)
        names = [field.name for field in dataclasses.fields(cls)]
        if record.get("format") != FORMAT or set(record) != {"format", *names}:
            raise UserError(f"{str(path)!r} is not a feature circuit that this version reads ({FORMAT})")
        numbers = ("site", "feature", "pos", "source", "target")
        static = {f.name for f in dataclasses.fields(cls) if f.metadata.get("static")}
        values = {}
        for name in names:
            value = record[name]
            if name in static:
                values[name] = tuple(value) if isinstance(value, list) else value
            else:
                values[name] = np.asarray(value, np.int64 if name in numbers else np.float64)
        circuit = cls(**values)
        circuit.check()
        return circuit

    def check(self) -> None:
        """Raise UserError if numbers of sites, features or nodes do not exist."""
        n, widths = self.n_nodes, np.asarray(self.widths)
        sizes = {len(a) for a in (self.feature, self.pos, self.effect, self.spread)} | {n}
        edges = {len(a) for a in (self.target, self.weight, self.weight_spread)} | {self.n_edges}
        inside = len(sizes) == len(edges) == 1 and len(widths) == len(self.addresses)
        inside = inside and bool(np.all((self.site >= 0) & (self.site < len(widths))))
        inside = inside and bool(np.all((self.feature >= ERROR) & (self.feature < widths[self.site])))
        inside = inside and bool(
            np.all((self.source >= 0) & (self.source < n) & (self.target >= 0) & (self.target <= n))
        )
        if not inside:
            raise UserError("the tables of this feature circuit do not fit together: it was changed or cut off")


def select_nodes(effects: FeatureEffects, *, threshold: float | None = None, n: int | None = None) -> FeatureCircuit:
    """The nodes with the largest effects, as a circuit without edges.

    Args:
      effects: the effects.
      threshold: keep nodes with |effect| > threshold, the mean over prompts.
      n: keep the n nodes of largest |effect|. Nodes without an effect are never kept.

    Raises:
      UserError: not exactly one of `threshold` and `n` is given.
    """
    if (threshold is None) == (n is None):
        raise UserError("give threshold= or n=, one of the two")
    table = node_table(effects)
    size = np.abs(table["effect"])
    if threshold is not None:
        chosen = np.flatnonzero(size > threshold)
    else:
        chosen = np.sort(np.argsort(-size, kind="stable")[:n])
        chosen = chosen[size[chosen] > 0]
    return _circuit_of(effects, table, chosen)


def random_nodes(effects: FeatureEffects, n: int, rng: np.random.Generator) -> FeatureCircuit:
    """n nodes drawn at random from those that have an effect: the control of a circuit of this size.

    Raises:
      UserError: fewer than n nodes have an effect.
    """
    table = node_table(effects)
    alive = np.flatnonzero(table["effect"] != 0)
    if n > len(alive):
        raise UserError(f"n={n} random nodes, but only {len(alive)} nodes have an effect")
    return _circuit_of(effects, table, np.sort(rng.choice(alive, n, replace=False)))


def _circuit_of(
    effects: FeatureEffects, table: dict[str, np.ndarray], chosen: Int[np.ndarray, " node"]
) -> FeatureCircuit:
    """The chosen rows of `node_table`, without edges."""
    empty = np.zeros(0, np.int64)
    return FeatureCircuit(
        *(table[name][chosen] for name in ("site", "feature", "pos", "effect", "spread")),
        source=empty,
        target=empty,
        weight=np.zeros(0),
        weight_spread=np.zeros(0),
        addresses=effects.addresses,
        widths=tuple(f.shape[-1] for f in effects.latents),
        ablation=effects.config.ablation,
        positions=effects.config.positions,
    )


def same_nodes(a: FeatureCircuit, b: FeatureCircuit) -> float:
    """The Jaccard index of the nodes of two circuits over the same values: |both| / |either|. NaN if both are empty.

    Raises:
      UserError: the circuits have other values, or one keeps positions apart and the other does not.
    """
    if (a.addresses, a.widths, a.positions) != (b.addresses, b.widths, b.positions):
        raise UserError("the circuits are over different values, or only one of them keeps positions apart")
    of = lambda c: set(zip(c.site.tolist(), c.feature.tolist(), c.pos.tolist(), strict=True))
    one, other = of(a), of(b)
    return len(one & other) / len(one | other) if one | other else float("nan")
