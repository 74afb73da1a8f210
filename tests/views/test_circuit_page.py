"""The page of a circuit: its data, its limits, and text from outside."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.views.circuit_page import MOST_EDGES, CircuitEdge, ScoredCircuit, circuit_page, faithfulness_plot

ROWS = [["input"], ["a0.h0", "a0.h1"], ["m0"], ["logits"]]
EDGES = [CircuitEdge("input", "a0.h1", "q", 2.0), CircuitEdge("a0.h1", "logits", "", -0.5)]


def graph_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_holds_the_graph_and_fetches_nothing():
    page = circuit_page("x </script> & co", ROWS, EDGES, shown=9, facts={"model": "<b>"})
    assert graph_of(page) == {
        "rows": ROWS, "edges": [["input", "a0.h1", "q", 2.0], ["a0.h1", "logits", "", -0.5]], "shown": 2,
    }  # fmt: skip
    assert "&lt;b&gt;" in page
    assert "x &lt;/script&gt;" in page
    assert not re.search(r'(src|href)="(?!#)', page)


def test_names_stay_data():
    odd = "</script><script>alert(1)</script>"
    page = circuit_page("t", [[odd], ["logits"]], [CircuitEdge(odd, "logits", "", 1.0)], shown=1, facts={})
    assert graph_of(page)["rows"][0] == [odd]
    assert page.count("alert(1)</script>") == 0


def test_long_lists_are_cut_and_said():
    page = circuit_page("t", ROWS, EDGES * MOST_EDGES, shown=1, facts={})
    assert len(graph_of(page)["edges"]) == MOST_EDGES
    assert "first 5,000 of 10,000 edges" in page


def test_unknown_nodes_and_empty_graphs_are_refused():
    with pytest.raises(UserError, match="'m7' is none"):
        circuit_page("t", ROWS, [CircuitEdge("m7", "logits", "", 1.0)], shown=1, facts={})
    with pytest.raises(UserError, match="no edges"):
        circuit_page("t", ROWS, [], shown=1, facts={})


def test_the_plot_shows_each_circuit_beside_random_ones():
    values = np.linspace(0, 1, 4)[:, None] + np.array([0, -0.1, 0.1])
    curve = ScoredCircuit((0, 2, 8, 32), values, values / 2)
    axes = faithfulness_plot({"eap": curve, "acdc": curve}).axes[0]
    solid = [line for line in axes.lines if line.get_label() in ("eap", "acdc")]
    assert [line.get_xdata().tolist() for line in solid] == [[2, 8, 32]] * 2  # a logarithmic axis has no 0
    assert axes.get_legend_handles_labels()[1] == ["eap", "acdc", "random, equal size"]
