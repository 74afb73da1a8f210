"""`Labelled`: selections and reductions are NumPy's, labels follow their entries, and other libraries read it."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled

VALUES = np.random.default_rng(0).normal(size=(3, 4, 2))
GRID = Labelled(VALUES, {"layer": range(3), "pos": ["a", "b", "a", "<c>"], "prompt": range(2)}, "logit difference")


@hypothesis.given(st.integers(-3, 2), st.lists(st.integers(-4, 3), max_size=5), st.booleans())
def test_selecting_is_indexing(layer, positions, by_slice):
    index = slice(1, 3) if by_slice else positions
    found = GRID.sel(layer=layer, pos=index)
    expected = VALUES[layer][1:3] if by_slice else VALUES[layer][np.asarray(positions, int)]
    np.testing.assert_array_equal(found.values, expected)
    labels = np.asarray(GRID.axes["pos"])[1:3] if by_slice else [GRID.axes["pos"][i] for i in positions]
    assert list(found.axes) == ["pos", "prompt"]
    assert list(found.axes["pos"]) == list(labels)


@pytest.mark.parametrize("how", ["mean", "std", "min", "max"])
@pytest.mark.parametrize("names", [(), ("pos",), ("layer", "prompt")])
def test_reductions_are_those_of_numpy(how, names):
    found = getattr(GRID, how)(*names)
    axis = tuple(list(GRID.axes).index(name) for name in names or GRID.axes)
    expected = getattr(np, how)(VALUES, axis=axis, **({"ddof": 1} if how == "std" else {}))
    np.testing.assert_allclose(found.values, expected)
    assert list(found.axes) == [name for name in GRID.axes if names and name not in names]


def test_the_largest_entries_have_their_labels():
    for place, value in GRID.largest(5):
        assert value in VALUES[place["layer"], :, place["prompt"]]
    values = [abs(value) for _, value in GRID.largest(100)]
    assert len(values) == VALUES.size
    assert values == sorted(values, reverse=True)


def test_wrong_axes_and_indices_are_refused():
    with pytest.raises(UserError, match="do not fit"):
        Labelled(VALUES, {"layer": range(3), "pos": range(4)})
    with pytest.raises(UserError, match="no axis 'head'; its axes are layer, pos, prompt"):
        GRID.mean("head")
    with pytest.raises(UserError, match="indices 0 to 3"):
        GRID.sel(pos=4)
    with pytest.raises(UserError, match="indices 0 to 3"):
        GRID.sel(pos=[True, False, True, False])
    with pytest.raises(UserError, match="indices 0 to 3"):
        GRID.sel(pos=1.5)


def test_numpy_and_notebooks_read_it():
    np.testing.assert_array_equal(np.asarray(GRID), VALUES)
    assert "layer: 3, pos: 4, prompt: 2" in repr(GRID)
    table = GRID.sel(prompt=0)._repr_html_()
    assert table.count("<td") == 12
    assert "&lt;c&gt;" in table
    assert "<pre>" in GRID._repr_html_()


def test_xarray_and_pandas_read_it():
    pytest.importorskip("xarray", reason="needs the extra: pip install 'jax_interp[xarray]'")
    array = GRID.to_xarray()
    assert array.dims == ("layer", "pos", "prompt")
    np.testing.assert_array_equal(array.sel(layer=2, prompt=1).values, VALUES[2, :, 1])
    assert array.coords["pos"].values.tolist() == ["a", "b", "a", "<c>"]
    frame = GRID.to_pandas()
    assert list(frame.columns) == ["layer", "pos", "prompt", "logit difference"]
    assert len(frame) == VALUES.size
    row = frame[(frame.layer == 1) & (frame.prompt == 0)].iloc[3]
    assert row["logit difference"] == VALUES[1, 3, 0]
    assert row["pos"] == "<c>"
