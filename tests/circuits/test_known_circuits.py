"""Methods of discovery on circuits that are known edge by edge: a transformer written by hand, and a trained one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.circuits import Circuit, LogitDifference, make_contrast, residual_graph
from jax_interp.circuits.discovery.acdc import acdc
from jax_interp.circuits.discovery.methods import MethodOptions, find_edges
from jax_interp.circuits.discovery.node_units import NodeUnits, edges_of_nodes
from jax_interp.circuits.discovery.pruning import PruningConfig, prune_by_masks
from jax_interp.circuits.discovery.selection import first, random_ranks, ranked
from jax_interp.circuits.discovery.units import EdgeUnits, run_circuits
from jax_interp.circuits.evaluation.knockouts import completeness, minimality, parts_of
from jax_interp.circuits.evaluation.ranking import known_nodes, node_scores, roc
from jax_interp.circuits.evaluation.report import evaluate_circuits
from jax_interp.circuits.nodes import make_nodes
from jax_interp.circuits.tasks import Induction
from jax_interp.toys.induction import induction_target
from jax_interp.toys.induction_program import FIXED, MOVED, induction_program, reordered_prompts


@pytest.fixture(scope="module")
def program():
    model = induction_program(jax.random.key(0))
    clean, corrupted, answers, others = reordered_prompts(jax.random.key(1), 6)
    return model, make_contrast(clean, corrupted, LogitDifference(answers, others))


def known_edges(model, ablation):
    units = EdgeUnits(residual_graph(model), ablation)
    names = MOVED if ablation == "corrupted" else MOVED + FIXED
    return units, units.flat(np.asarray(Circuit.of(units.graph, names).edges))


def test_the_program_does_what_it_says(program):
    model, contrast = program
    predicted = np.argmax(np.asarray(model(contrast.clean))[:, -1], axis=-1)
    np.testing.assert_array_equal(predicted, contrast.metric.answer)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("ablation", ["corrupted", pytest.param("zero", marks=SLOW)])
def test_the_known_edges_are_the_circuit(program, ablation):
    """They suffice, each is needed, and nothing else is: the figures of evaluation say so."""
    model, contrast = program
    units, known = known_edges(model, ablation)
    rows = np.concatenate([known[None], ~known[None], known & ~parts_of(units, known)])
    report = evaluate_circuits(model, contrast, units, rows[:1], seeds=2)
    assert report.faithfulness().values[0, 0] == pytest.approx(1, abs=0.05)
    assert report.random_faithfulness().values[0, 2] < 0.7 or ablation == "zero"
    whole, *without = run_circuits(model, contrast, units, rows).mean(axis=1)[[0, *range(2, len(rows))]]
    assert max(without) < 0.6 * whole


METHODS = ["acdc"]
METHODS += [
    pytest.param(name, marks=SLOW) for name in ("eap", "eap-ig", "clean-corrupted", "importance", "edge-pruning")
]


@pytest.mark.parametrize("method", METHODS)
def test_methods_rank_the_edges_of_the_program_first(program, method, capsys):
    model, contrast = program
    units, known = known_edges(model, "corrupted")
    options = MethodOptions(thresholds=(0.01, 0.1, 1.0), target=0.03, pruning=PruningConfig(steps=100))
    scores = np.abs(find_edges(method, model, contrast, units, options))
    found = roc(scores, known)
    nodes = roc(node_scores(units, scores)[1:], known_nodes(units, known)[1:])
    with capsys.disabled():
        print(f"\n  {method}: edges {found}; nodes {nodes}")
    assert found.auc > 0.95
    assert nodes.auc > 0.95
    assert found.first >= 0.75


@pytest.mark.slow
def test_removing_edges_that_carry_nothing_does_not_change_the_metric(program):
    """What `pruned` takes away has no effect with corrupted values, on circuits of all sizes."""
    model, contrast = program
    units = EdgeUnits(residual_graph(model))
    keep = np.concatenate([first(random_ranks(units, seed, "uniform"), [10, 25, 40, 60]) for seed in range(3)])
    pruned = units.pruned(keep)
    assert (pruned.sum(axis=1) < keep.sum(axis=1)).sum() > 5
    metric = run_circuits(model, contrast, units, np.concatenate([keep, pruned]))
    np.testing.assert_allclose(metric[: len(keep)], metric[len(keep) :], atol=2e-5)


@pytest.mark.slow
def test_completeness_and_minimality_of_the_program(program):
    model, contrast = program
    units, known = known_edges(model, "corrupted")
    found = completeness(model, contrast, units, known, parts_of(units, known, "node"))
    assert found.incompleteness().value < 0.1
    assert abs(found.complement.value) < 0.1
    larger = known | first(random_ranks(units, 0, "uniform"), [10])[0]
    needed = minimality(model, contrast, units, larger)
    top = list(needed.estimates())[: len(MOVED)]
    assert sorted(top) == sorted(MOVED)
    assert not set(MOVED) & set(needed.unneeded())


@pytest.mark.slow
def test_node_variants_find_the_heads_of_the_program(program):
    model, contrast = program
    nodes = make_nodes(model, contrast, "blocks.*.attn.z", per="head")
    units = NodeUnits(nodes + make_nodes(model, contrast, "blocks.*.mlp_out"))
    known = np.isin(units.names, ["blocks.0.attn.z[head 0]", "blocks.1.attn.z[head 0]"])
    assert known.sum() == 2
    removed = acdc(model, contrast, units, [0.01, 0.1])
    np.testing.assert_array_equal(removed.keep, [known, known])
    masks = prune_by_masks(model, contrast, units, [0.25], PruningConfig(steps=100))
    np.testing.assert_array_equal(masks.keep[0], known)
    edges = EdgeUnits(residual_graph(model))
    heads = np.isin(edges.graph.source_names, ["input", "a0.h0", "a1.h0"])
    assert edges.flat(np.asarray(Circuit.of(edges.graph, MOVED + FIXED).edges))[edges_of_nodes(edges, heads)].sum() == 7


@pytest.mark.slow
def test_methods_find_the_induction_heads_of_a_trained_model(capsys):
    """Two layers, attention only, trained on repeated sequences. Heads of layer 0 feed the keys of induction heads.

    The known edges are those of the mechanism (Olsson et al. 2022): embeddings into the values of the previous-token
    heads, these into the keys of the induction heads, embeddings into their values, and their outputs to the logits.
    The prompts of a pair differ in the token after the earlier occurrence alone, so queries and keys of the same token
    do not carry the difference: values do.
    """
    model = induction_target()
    contrast = Induction(period=12, repeated=6).of_ids(np.arange(32), 12, seed=0).contrast
    units = EdgeUnits(residual_graph(model))
    heads = range(model.config.n_heads)
    names = [f"input->a1.h{i}<v>" for i in heads] + [f"a1.h{i}->logits" for i in heads]
    known = np.isin(units.names, names)
    for method in ("eap", "eap-ig", "acdc", "edge-pruning"):
        options = MethodOptions(thresholds=(0.003, 0.03, 0.3), target=0.1, pruning=PruningConfig(steps=150))
        scores = np.abs(find_edges(method, model, contrast, units, options))
        found = roc(scores, known)
        with capsys.disabled():
            print(f"\n  {method}: {found}")
        assert found.auc > 0.9
        report = evaluate_circuits(model, contrast, units, first(ranked(units, scores), [8]), seeds=2)
        assert report.faithfulness().values[0, 0] > report.random_faithfulness().values[0, 0] + 0.3
    assert jnp.isfinite(contrast.metric(model(contrast.clean))).all()
