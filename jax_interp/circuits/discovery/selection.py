"""From scores to circuits: an order of the units, and the first n of them.

    ranks = ranked(units, scores, "absolute")           0 for the first unit
    circuits = first(ranks, sizes_of(units, MIB_FRACTIONS))    [size, unit]

All orders are nested: the circuit of a size contains the circuits of smaller sizes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.discovery.units import EdgeUnits, Units
from jax_interp.core.errors import UserError

Order = Literal["absolute", "signed", "greedy", "greedy_signed"]
"""absolute: by |score|. signed: by score. greedy: from the logits back, always the edge of largest |score| whose target
is in the circuit already (EAP-IG, arXiv:2403.17806); greedy_signed: the same by score."""

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The sizes of the benchmark MIB (arXiv:2504.13151), as fractions of all edges."""


def checked_scores(units: Units, scores: Float[np.ndarray | Array, " unit"]) -> Float[np.ndarray, " unit"]:
    """The scores as a NumPy vector. A matrix [target, source] is taken for edges.

    Raises:
      UserError: there is not one finite score for each unit.
    """
    values = np.asarray(scores)
    if isinstance(units, EdgeUnits) and values.ndim == 2:
        values = units.flat(values)
    if values.shape != (len(units),):
        raise UserError(f"there are {len(units)} units, and scores of shape {values.shape}: give one for each unit")
    values = values.astype(float)
    if not np.isfinite(values).all():
        wrong = [units.names[i] for i in np.nonzero(~np.isfinite(values))[0]]
        raise UserError(f"{len(wrong)} scores are not finite: {', '.join(wrong[:5])}{', ...' if wrong[5:] else ''}")
    return values


def ranked(
    units: Units, scores: Float[np.ndarray | Array, " unit"], order: Order = "absolute"
) -> Int[np.ndarray, " unit"]:
    """The place of each unit in the order: 0 is taken first. Among equal scores the earlier unit is first.

    Args:
      units: what is ordered.
      scores: one number for each unit; [target, source] is accepted for edges.
      order: see `Order`. The greedy orders need edges.

    Raises:
      UserError: the scores do not fit, or there is no such order.
    """
    if order not in get_args(Order):
        raise UserError(f"order={order!r}: choose one of {', '.join(get_args(Order))}")
    values = checked_scores(units, scores)
    values = values if order.endswith("signed") else np.abs(values)
    if order in ("absolute", "signed"):
        return _places(np.argsort(-values, kind="stable"))
    if not isinstance(units, EdgeUnits):
        raise UserError(f"order={order!r} follows edges from the logits back: use absolute or signed for nodes")
    return _places(_greedy(units, values))


def _places(order: Int[np.ndarray, " unit"]) -> Int[np.ndarray, " unit"]:
    ranks = np.empty(len(order), int)
    ranks[order] = np.arange(len(order))
    return ranks


def _greedy(units: EdgeUnits, values: Float[np.ndarray, " unit"]) -> Int[np.ndarray, " unit"]:
    """The order of EAP-IG's `apply_greedy`. Edges that lead to no target in the circuit come last, by their value."""
    sources, into = units.places[1].tolist(), _edges_into(units)
    leaves = ~np.any(units.inputs, axis=1)
    heap = [(-values[edge], edge) for edge in np.nonzero(leaves[units.places[0]])[0].tolist()]
    heapq.heapify(heap)
    taken: dict[int, None] = {}
    entered = set()
    while heap:
        _, edge = heapq.heappop(heap)
        taken[edge] = None
        if sources[edge] not in entered:
            entered.add(sources[edge])
            for other in into[sources[edge]]:
                if other not in taken:
                    heapq.heappush(heap, (-values[other], other))
    left = np.setdiff1d(np.arange(len(units)), list(taken))
    return np.concatenate([np.fromiter(taken, int), left[np.argsort(-values[left], kind="stable")]])


def sizes_of(units: Units, fractions: Sequence[float] = MIB_FRACTIONS) -> Int[np.ndarray, " size"]:
    """The number of units of each fraction, rounded down as MIB does.

    Raises:
      UserError: a fraction is not in [0, 1].
    """
    given = np.asarray(fractions, float)
    if given.ndim != 1 or not given.size or not ((given >= 0) & (given <= 1)).all():
        raise UserError(f"fractions={tuple(fractions)}: give numbers from 0 to 1")
    return np.array([int(fraction * len(units)) for fraction in given.tolist()])


def first(
    ranks: Int[np.ndarray, " unit"], sizes: Sequence[int] | Int[np.ndarray, " size"]
) -> Bool[np.ndarray, "size unit"]:
    """The circuits of the first units of an order, one row for each size.

    Raises:
      UserError: a size is negative, or larger than the number of units.
    """
    wanted = np.asarray(sizes, int)
    if wanted.ndim != 1 or (wanted < 0).any() or (wanted > len(ranks)).any():
        raise UserError(f"sizes={wanted.tolist()}: there are {len(ranks)} units")
    return ranks[None, :] < wanted[:, None]


def above(
    units: Units, scores: Float[np.ndarray | Array, " unit"], threshold: float, *, absolute: bool = True
) -> Bool[np.ndarray, " unit"]:
    """The units whose |score| (or score) is at least the threshold."""
    values = checked_scores(units, scores)
    return (np.abs(values) if absolute else values) >= threshold


def random_ranks(
    units: Units, seed: int, baseline: Literal["connected", "uniform"] = "connected"
) -> Int[np.ndarray, " unit"]:
    """A random order, for circuits to compare with.

    Args:
      units: what is ordered.
      seed: a seed of NumPy's generator.
      baseline: uniform: all orders are equally likely. connected (edges): each edge comes together with a random path
        from the input to the logits through it. A small uniform circuit has no such path, and is then as good as
        an empty one: it is a weaker comparison. Nodes have no paths, and both are the same for them.
    """
    if baseline not in ("connected", "uniform"):
        raise UserError(f"baseline={baseline!r}: choose connected or uniform")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(units))
    if baseline == "uniform" or not isinstance(units, EdgeUnits):
        return _places(shuffled)
    targets, sources = (places.tolist() for places in units.places)
    into, readers = _edges_into(units), [np.nonzero(row)[0].tolist() for row in units.inputs]
    out_of = [np.nonzero(units.places[1] == source)[0].tolist() for source in range(units.graph.shape[1])]
    order: dict[int, None] = {}
    for edge in shuffled.tolist():
        if edge in order:
            continue
        path = [edge]
        while before := into[sources[path[-1]]]:
            path.append(before[rng.integers(len(before))])
        after = edge
        while following := [e for source in readers[targets[after]] for e in out_of[source]]:
            after = following[rng.integers(len(following))]
            path.append(after)
        order.update(dict.fromkeys(path))
    return _places(np.fromiter(order, int))


def _edges_into(units: EdgeUnits) -> list[list[int]]:
    """For each source, the edges into the inputs of its node."""
    columns = units.inputs[units.places[0]]
    return [np.nonzero(columns[:, source])[0].tolist() for source in range(units.graph.shape[1])]
