"""`sweep`: every cell is a call of the function, whatever the pieces, and the memory stays under the budget."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.circuits.sweeps import Axis, Pieces, SweepInterrupted, sweep
from jax_interp.core.errors import UserError

WEIGHTS = jax.random.normal(jax.random.key(0), (4, 6))


def readout(weights, layer, vector, scale):
    return jnp.tanh(weights[layer] * vector) * scale


F = jax.tree_util.Partial(readout, WEIGHTS)
VECTORS = jax.random.normal(jax.random.key(1), (5, 6))
GRID = {"layer": range(4), "vector": VECTORS, "scale": [-1.0, 0.5, 2.0]}


def by_hand(cells):
    return np.stack([readout(WEIGHTS, layer, vector, scale) for layer, vector, scale in cells])


@pytest.mark.parametrize("pieces", [Pieces(), Pieces(rows=4), Pieces(rows=1, loop=()), Pieces(loop=("layer", "scale"))])
def test_a_grid_has_a_call_in_every_cell_whatever_the_pieces(pieces):
    found = sweep(F, GRID, inner=("feature",), pieces=pieces)
    assert {name: len(labels) for name, labels in found.axes.items()} == {
        "layer": 4,
        "vector": 5,
        "scale": 3,
        "feature": 6,
    }
    expected = by_hand(itertools.product(range(4), VECTORS, (-1.0, 0.5, 2.0))).reshape(4, 5, 3, 6)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.axes["scale"] == (-1.0, 0.5, 2.0)


def test_a_list_of_cells_keeps_its_order():
    cells = [{"layer": layer, "vector": VECTORS[i], "scale": 1.0 * i} for i, layer in enumerate([3, 0, 3, 1, 0])]
    found = sweep(F, cells, inner=("feature",))
    np.testing.assert_allclose(found.values, by_hand(cell.values() for cell in cells), rtol=1e-6)
    assert found.axes["cell"][0].startswith("layer 3")


def test_the_pieces_of_a_sweep_are_one_program():
    traced = []

    def f(a, b):
        traced.append(1)
        return a + b

    found = sweep(f, {"a": range(30), "b": range(10)}, inner=(), pieces=Pieces(rows=7, loop=("a",)))
    assert len(traced) == 1
    np.testing.assert_array_equal(found.values, np.add.outer(np.arange(30), np.arange(10)))


def test_the_memory_of_a_piece_stays_under_the_budget(monkeypatch):
    sizes, original = [], sweep.__globals__["_compiled"]

    def noted(work, rows):
        program, used = original(work, rows)
        sizes.append((rows, used))
        return program, used

    monkeypatch.setitem(sweep.__globals__, "_compiled", noted)
    f = lambda x: jnp.sum(jnp.sort(x * jnp.arange(10_000.0)))  # a cell needs 40,000 bytes at least
    x = np.linspace(0, 1, 200, dtype=np.float32)
    found = sweep(f, {"x": x}, inner=(), pieces=Pieces(budget=1_000_000))
    rows, used = sizes[-1]
    assert used <= 1_000_000 < sizes[0][1]
    assert 5 < rows < 40
    np.testing.assert_allclose(found.values, x * (9999 * 10_000 / 2), rtol=1e-4)


def test_ctrl_c_keeps_what_is_done(monkeypatch):
    done = []

    def step(self, cells):
        done.append(cells)
        if cells == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep.__globals__["_Display"], "step", step)
    with pytest.raises(SweepInterrupted, match="2 of 4") as stopped:
        sweep(lambda layer: 2 * layer, {"layer": range(4)}, inner=())
    np.testing.assert_array_equal(stopped.value.partial.values, [0.0, 2.0, np.nan, np.nan])


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({}, "no axis"),
        ([], "dict of axes"),
        ({"layer": []}, "no entries"),
        ({"layer": ["a", "b"]}, "not numbers"),
        ({"layer": Axis(range(3), ["a"])}, "3 entries and 1 labels"),
        ([{"layer": 1}, {"pos": 1}], "same names"),
        ({"layer": VECTORS}, "cannot be looped over"),
    ],
)
def test_wrong_cells_are_refused(over, message):
    with pytest.raises(UserError, match=message):
        sweep(lambda layer: layer, over, inner=())


def test_one_cell_over_the_budget_is_refused():
    with pytest.raises(UserError, match="more than the budget of 10"):
        sweep(lambda layer: jnp.ones(100, int) * layer, {"layer": range(3)}, inner=("x",), pieces=Pieces(budget=10))
    with pytest.raises(UserError, match="one name for each axis"):
        sweep(lambda layer: jnp.ones((2, 2), int) * layer, {"layer": range(3)})
