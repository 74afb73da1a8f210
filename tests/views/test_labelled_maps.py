"""Heat maps of labelled arrays: the picture has the labels, and the page has the numbers as text that runs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.views.labelled_maps import LabelledMap, labelled_map, labelled_page

GRID = Labelled(np.arange(12.0).reshape(2, 2, 3) - 4, {"layer": range(2), "head": range(2), "pos": ["a", "<b>", "a"]})


def test_the_figure_has_the_labels_of_all_axes():
    axes = labelled_map(GRID, "effects").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["L0 H0", "L0 H1", "L1 H0", "L1 H1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "<b>", "a"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layer, head", "pos")
    mesh = next(each for each in axes.collections if each.get_array() is not None and each.get_array().size == 12)
    np.testing.assert_array_equal(np.ravel(mesh.get_array()), GRID.values.ravel())


def test_cells_without_a_number_are_hatched():
    values = GRID.values.copy()
    values[0, 0, 0] = np.nan
    figure = labelled_map(Labelled(values, GRID.axes))
    assert any(each.get_hatch() for each in figure.axes[0].collections)
    assert labelled_page([LabelledMap(Labelled(values, GRID.axes), "x")], "t").count('class="none"') == 1


def test_the_page_shows_numbers_errors_and_labels_as_text():
    error = Labelled(np.full(GRID.shape, 0.25), GRID.axes)
    page = labelled_page([LabelledMap(GRID, "heads", error)], "Patching", "lead", [("model", "<script>")])
    assert page.count("data-v=") == 12
    assert 'data-v="7 ± 0.25"' in page
    assert "&lt;b&gt;" in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.split("</head>")[1]


def test_what_cannot_be_drawn():
    with pytest.raises(UserError, match="select a part"):
        LabelledMap(Labelled(np.zeros((300, 300)), {"a": range(300), "b": range(300)}), "large")
    with pytest.raises(UserError, match="select a part"):
        LabelledMap(Labelled(np.zeros(()), {}), "scalar")
    with pytest.raises(UserError, match="errors have the shape"):
        LabelledMap(GRID, "x", Labelled(np.zeros(2), {"a": range(2)}))
