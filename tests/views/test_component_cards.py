"""Component cards on the page of a decomposition: every text stays text, and the figures show what they are given."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_report import Tags

from jax_interp.views.component_cards import GAP, groups, pooled, shaded
from jax_interp.views.decomposition_report import render


@pytest.fixture
def result(evil):
    error = {"stochastic": 0.2, "ci": 0.3, "unmasked": 0.1, "zero": 1.0}
    return {
        "target": evil, "source": evil, "relative_faithfulness": 0.1, "error_unrecovered": error,
        "error": error, "pgd": {"5": 0.5},
        "spectrum": {"blocks.*.mlp.up": [[0.5, 0.1], [0.2, 0.0]]}, "l0": {"blocks.*.mlp.up": [1.0, 0.5]},
        "alive": {"blocks.*.mlp.up": [2, 1]}, "linearity": [{"name": evil, "value": 1.0}],
    }  # fmt: skip


@pytest.fixture
def shown(evil):
    rng = np.random.default_rng(0)

    def matrix(name, cards):
        V, U = rng.standard_normal((cards, 300)), rng.standard_normal((cards, 4))
        window = {
            "tokens": ["a", evil, None, "b"],
            "importance": [0.0, 1.0, 0.0, 0.25],
            "activation": [0.0, -3.5, 0.0, 1.0],
            "peak": 1,
        }
        own = {"mean": 0.01, "rate": 0.02, "inputs": [(evil, 0.5, 20.0)], "predicted": [(evil, 0.25, 3.0)]}
        each = [own | {"component": 17 + i, "windows": [window]} for i in range(cards)]
        return {"name": name, "C": 32, "alive": cards, "V": V, "U": U, "cards": each}

    names = {"blocks.0.mlp.up": 2, "blocks.0.mlp.down": 0, f"blocks.1.{evil}": 1}
    return {
        "rows": 2048, "threshold": 0.1, "matrices": [matrix(*item) for item in names.items()],
        "passages": [{"tokens": [evil, None, "c"], "importance": {n: rng.random((k, 3)) for n, k in names.items()}}],
    }  # fmt: skip


def test_the_page_of_a_language_model(result, shown, evil):
    """Whatever text is in it stays text; it fetches nothing, and says what it was given."""
    page = render(result, [], evil, shown)
    assert evil not in page
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 15
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.counts)
    assert set(re.findall(r"""(?:href|src)=["']([^"'#][^"']*)""", page)) == set()

    assert tags.counts["article"] == 3
    assert tags.counts["svg"] == 2 + 2 + 2, "two of the figures, V and U of two matrices, two layers' importance"
    assert "0 of 32 components are important on some input" in page
    assert "important at 2.0 % of positions, mean 0.01" in page
    assert "50.0 % ×20" in page
    assert 'style="--a:1.00" title="importance 1, activation -3.5"' in page
    assert 'style="--a:0.25" title="importance 0.25, activation 1"' in page
    assert GAP in page
    assert re.findall(r'id="(blocks[^"]*)"', page)[:2] == ["blocks.0.mlp.up.17", "blocks.0.mlp.up.18"]
    assert "<details open><summary>Importance along the text, blocks.0" in page
    assert "figure" not in shown["matrices"][0], "what it was given is as it was"


def test_a_toy_has_vectors_alone(result, shown):
    shown["matrices"] = shown["matrices"][:1]
    for matrix in shown["matrices"]:
        matrix["cards"] = [{name: card[name] for name in ("component", "mean", "rate")} for card in matrix["cards"]]
    del shown["passages"]
    page = render(result, [], "run", shown)
    assert "<article" not in page
    assert "<b>17</b> 2.0 %, 0.01; " in page
    assert page.count("<svg") == 2 + 1


def test_where_nothing_is_important(result, shown):
    shown["matrices"] = shown["matrices"][1:2]
    page = render(result, [], "run", shown)
    assert "2,048 tokens of held-out text" in page
    assert '<p class="note">None.</p>' in page


def test_layers_are_groups():
    assert groups(["blocks.0.q", "blocks.0.k", "linear", "blocks.10.q"]) == [
        ["blocks.0.q", "blocks.0.k"],
        ["linear"],
        ["blocks.10.q"],
    ]


def test_a_map_draws_what_is_not_nothing():
    values = np.array([[1.0, 0.01, -0.5], [0.5, 0.5, np.nan]])
    axes = Figure().subplots()
    shaded(axes, values, levels=4)
    squares = {
        (patch.get_facecolor(), tuple(map(tuple, patch.get_path().vertices[::5].astype(int)))) for patch in axes.patches
    }
    by_alpha = sorted((round(color[3], 2), corners) for color, corners in squares)
    assert by_alpha == [(0.5, ((0, 1), (1, 1))), (0.5, ((2, 0),)), (1.0, ((0, 0),))]


def test_neighbours_are_pooled_by_size():
    values = np.array([[1.0, -3.0, 0.0, 2.0, 0.5]])
    np.testing.assert_array_equal(pooled(values, 2), [[-3.0, 2.0]])
    assert pooled(values, 5) is values
