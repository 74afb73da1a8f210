"""The graph JSON of MIB: its names and counts, round trips, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_interp.circuits import residual_graph
from jax_interp.circuits.discovery.mib_file import mib_graph, read_mib, write_mib
from jax_interp.circuits.discovery.units import EdgeUnits
from jax_interp.core.errors import UserError
from jax_interp.models import Config, init

UNITS = EdgeUnits(mib_graph(2, 2))
SCORES = np.random.default_rng(0).normal(size=len(UNITS))
KEEP = SCORES > 0.5


def written(tmp_path: Path, change=None) -> Path:
    path = write_mib(tmp_path / "c.json", UNITS, SCORES, KEEP, d_model=8)
    if change is not None:
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("parallel", ["no", "one norm"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_graph_of_a_file_is_that_of_the_model(parallel, kv_heads):
    config = Config(n_layers=2, d_model=8, n_heads=4, d_mlp=8, vocab_size=9, n_ctx=8, n_kv_heads=kv_heads,
                    parallel=parallel)  # fmt: skip
    model = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    assert residual_graph(model) == mib_graph(2, 4, parallel != "no", kv_heads)


def test_the_format_is_that_of_the_benchmark(tmp_path):
    """The layout of circuits/ioi-eap-ig.json: keys, order of edges, and what counts as a node of the circuit."""
    values = json.loads(written(tmp_path).read_text())
    assert list(values) == ["cfg", "nodes", "edges"]
    assert values["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    assert list(values["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    assert len(values["edges"]) == 6 + 3 + 24 + 6 + 7
    assert set(map(tuple, values["edges"].values())) == {("score", "in_graph")}
    kept = [name.split("->") for name, edge in values["edges"].items() if edge["in_graph"]]
    entered, left = {t.partition("<")[0] for _, t in kept} | {"input"}, {s for s, _ in kept}
    for name, node in values["nodes"].items():
        assert node["in_graph"] == (name == "logits" or (name in entered and name in left))


def test_a_circuit_comes_back(tmp_path):
    found = read_mib(written(tmp_path))
    assert found.units == UNITS
    assert found.d_model == 8
    assert found.node_scores == {}
    np.testing.assert_array_equal(found.keep, KEEP)
    np.testing.assert_array_equal(found.scores, SCORES)
    without = read_mib(written(tmp_path, lambda v: [edge.pop("score") for edge in v["edges"].values()]))
    assert without.scores is None
    scored = read_mib(written(tmp_path, lambda v: v["nodes"]["m0"].update(score=2)))
    assert scored.node_scores == {"m0": 2.0}


def test_grouped_heads_are_written_for_each_head_and_read_as_one(tmp_path):
    units = EdgeUnits(mib_graph(2, 4, kv_heads=2))
    scores = np.random.default_rng(1).normal(size=len(units))
    path = write_mib(tmp_path / "g.json", units, scores, scores > 0, d_model=8)
    edges = json.loads(path.read_text())["edges"]
    assert len(edges) == len(EdgeUnits(mib_graph(2, 4)))
    at = units.names.index("m0->a1.h1<k>")
    assert edges["m0->a1.h2<k>"] == edges["m0->a1.h3<k>"] == {"score": scores[at], "in_graph": bool(scores[at] > 0)}
    found = read_mib(path, units.graph)
    np.testing.assert_allclose(found.scores, scores)
    np.testing.assert_array_equal(found.keep, scores > 0)
    values = json.loads(path.read_text())
    values["edges"]["m0->a1.h2<k>"]["in_graph"] ^= True
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"a1.h2<k>, m0->a1.h3<k> share one input"):
        read_mib(path, units.graph)


CHANGES = {
    "'extra' is not known": lambda v: v.update(extra=1),
    "'edges' is missing": lambda v: v.pop("edges"),
    "'n_ctx' is not known": lambda v: v["cfg"].update(n_ctx=4),
    "n_layers should be a positive number": lambda v: v["cfg"].update(n_layers="2"),
    "is no model we know": lambda v: v["cfg"].update(n_layers=10**5, n_heads=10**5),
    "'../m0' is not known": lambda v: v["nodes"].update({"../m0": {"in_graph": True}}),
    "'m1' is missing": lambda v: v["nodes"].pop("m1"),
    "has entries for single neurons": lambda v: v["nodes"]["m1"].update(neurons=[True]),
    "'input->a9.h0<q>' is not known": lambda v: v["edges"].update({"input->a9.h0<q>": {"in_graph": True}}),
    "'m0->m1' is missing": lambda v: v["edges"].pop("m0->m1"),
    "in_graph should be true or false, it is 1": lambda v: v["edges"]["m0->m1"].update(in_graph=1),
    "score should be a number": lambda v: v["edges"]["m0->m1"].update(score="high"),
    "'weight' is not known": lambda v: v["edges"]["m0->m1"].update(weight=1),
}


@pytest.mark.parametrize("message", CHANGES)
def test_what_is_not_understood_is_refused_by_name(tmp_path, message):
    path = written(tmp_path, CHANGES[message])
    with pytest.raises(UserError, match=message):
        read_mib(path)


def test_files_of_another_model_and_wrong_scores_are_refused(tmp_path):
    path = written(tmp_path)
    with pytest.raises(UserError, match="is for a model with n_layers=2, this one has 3"):
        read_mib(path, mib_graph(3, 2))
    with pytest.raises(UserError, match="not finite"):
        write_mib(path, UNITS, np.where(KEEP, np.nan, SCORES), KEEP, d_model=8)
    with pytest.raises(UserError, match="a circuit of shape"):
        write_mib(path, UNITS, SCORES, KEEP[:3], d_model=8)
