"""Orders of edges: against a literal transcription of EAP-IG's algorithm, reachability, and the sizes of MIB."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp.circuits.discovery.mib_file import mib_graph
from jax_interp.circuits.discovery.selection import MIB_FRACTIONS, above, first, random_ranks, ranked, sizes_of
from jax_interp.circuits.discovery.units import EdgeUnits
from jax_interp.core.errors import UserError

UNITS = EdgeUnits(mib_graph(3, 4))
GROUPED = EdgeUnits(mib_graph(3, 4, kv_heads=2))
PARALLEL = EdgeUnits(mib_graph(3, 4, parallel=True))
KINDS = pytest.mark.parametrize("units", [UNITS, GROUPED, PARALLEL], ids=["plain", "grouped", "parallel"])


def ends(units):
    return [name.split("->") for name in units.names]


def readers(units, target):
    """The nodes that read a target, from its name alone."""
    name, _, kind = target.partition("<")
    if units is GROUPED and kind and kind[0] in "kv":
        layer, head = name.split(".h")
        return {f"{layer}.h{2 * int(head)}", f"{layer}.h{2 * int(head) + 1}"}
    return {name}


def test_gpt2_has_the_published_number_of_edges():
    assert len(EdgeUnits(mib_graph(12, 12))) == 32_491


@KINDS
@pytest.mark.parametrize("absolute", [True, False])
def test_greedy_is_the_algorithm_of_eap_ig(units, absolute):
    scores = np.random.default_rng(0).normal(size=len(units))
    value = lambda i: abs(scores[i]) if absolute else scores[i]
    nodes, taken = {"logits"}, []
    while True:
        frontier = [i for i, (_, t) in enumerate(ends(units)) if readers(units, t) & nodes and i not in taken]
        if not frontier:
            break
        taken.append(max(frontier, key=value))
        nodes.add(ends(units)[taken[-1]][0])
    ranks = ranked(units, scores, "greedy" if absolute else "greedy_signed")
    np.testing.assert_array_equal(np.argsort(ranks)[: len(taken)], taken)


@KINDS
def test_pruning_leaves_the_edges_on_paths_from_input_to_logits(units):
    rng = np.random.default_rng(1)
    keep = rng.random((20, len(units))) < np.linspace(0.01, 0.4, 20)[:, None]
    found = units.pruned(keep)
    for row, kept in zip(found, keep):
        edges = [ends(units)[i] for i in np.nonzero(kept)[0]]
        from_input, to_logits = {"input"}, set()
        for _ in range(12):
            from_input |= {node for s, t in edges if s in from_input for node in readers(units, t)}
            to_logits |= {s for s, t in edges if t == "logits" or readers(units, t) & to_logits}
        alive = [s in from_input and (t == "logits" or bool(readers(units, t) & to_logits)) for s, t in edges]
        # a kept node must be reached and read: one that is read only through unreached nodes is not removed by either
        np.testing.assert_array_equal(row[kept], alive)
        assert not row[~kept].any()


def test_orders_are_nested_and_sizes_are_those_of_mib():
    scores = np.random.default_rng(2).normal(size=len(UNITS))
    assert sizes_of(UNITS, MIB_FRACTIONS).tolist() == [int(f * len(UNITS)) for f in MIB_FRACTIONS]
    for order in ("absolute", "signed", "greedy", "greedy_signed"):
        circuits = first(ranked(UNITS, scores, order), sizes_of(UNITS))
        assert circuits.sum(axis=1).tolist() == sizes_of(UNITS).tolist()
        assert (circuits[:-1] <= circuits[1:]).all()
    best = first(ranked(UNITS, scores, "signed"), [5])[0]
    assert scores[best].min() > scores[~best].max()
    np.testing.assert_array_equal(above(UNITS, scores, 1.0), np.abs(scores) >= 1.0)
    np.testing.assert_array_equal(above(UNITS, scores, 1.0, absolute=False), scores >= 1.0)


@KINDS
def test_random_circuits_are_connected_where_they_should_be(units):
    ranks = random_ranks(units, 0)
    assert sorted(ranks.tolist()) == list(range(len(units)))
    sizes = [20, 60, 100]
    lost = sizes - units.pruned(first(ranks, sizes)).sum(axis=1)
    assert lost.max() < 8  # the path that the size cuts off
    uniform = units.pruned(first(random_ranks(units, 0, "uniform"), [10]))
    assert uniform.sum() == 0
    assert (random_ranks(units, 1) != ranks).any()


def test_a_matrix_of_scores_is_taken_for_edges():
    flat = np.random.default_rng(3).normal(size=len(UNITS))
    matrix = UNITS.matrix(flat)
    np.testing.assert_array_equal(UNITS.flat(matrix), flat)
    np.testing.assert_array_equal(ranked(UNITS, matrix), ranked(UNITS, flat))


@pytest.mark.parametrize(
    ("scores", "order", "message"),
    [
        (np.zeros(3), "absolute", "give one for each unit"),
        (np.where(np.arange(len(UNITS)) == 7, np.nan, 0.0), "absolute", "input->a0.h"),
        (np.zeros(len(UNITS)), "largest", "choose one of absolute"),
        (np.zeros((2, 2)), "absolute", r"\[target, source\]"),
    ],
)
def test_wrong_scores_are_refused(scores, order, message):
    with pytest.raises(UserError, match=message):
        ranked(UNITS, scores, order)
    with pytest.raises(UserError, match="from 0 to 1"):
        sizes_of(UNITS, [0.1, 1.5])
    with pytest.raises(UserError, match="there are"):
        first(np.arange(5), [6])
