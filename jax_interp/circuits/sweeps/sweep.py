"""`sweep`: evaluate a function at every cell of a grid or a list, as one compiled program.

    effect = lambda layer, head: metric(edit(model, at("blocks.attn.z", Zero(), layer=layer, head=head))(tokens))
    sweep(effect, {"layer": range(12), "head": range(12)})              [layer, head, prompt]

The cells are computed in pieces. A piece is a `vmap` over as many cells as the memory budget holds. All pieces run the
same program, so that one more cell costs what the others cost. Inside `jax.set_mesh(mesh)` the cells of a piece are
split over the axes of the mesh that split rows.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jax_interp.circuits.sweeps.by_type import ByType
from jax_interp.circuits.sweeps.cells import Cells, Over, cells_of
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.processes import on_host
from jax_interp.training.meshes import row_shards
from jax_interp.training.placement import automatic
from jax_interp.training.progress import Progress, progress
from jax_interp.training.sharding import shard_batch

_QUIET_SECONDS = 2.0  # a sweep that ends before shows no progress


@dataclasses.dataclass(frozen=True)
class Pieces:
    """How a sweep is cut into pieces.

    Args:
      budget: the memory of a piece in bytes, on each device: the temporary buffers and the result of the compiled
        program, as the compiler states them. The model and the inputs are not counted.
      rows: the number of cells in a piece. None: as many as the budget holds.
      loop: the axes along which pieces are computed one after another. The function gets one number for them in a
        piece, so that it can skip work: a model that is resumed at a traced layer runs only the layers that it must.
        Names that the sweep does not have are ignored.
      quiet: show no progress. Otherwise it is shown after two seconds.
    """

    budget: int = 2**30
    rows: int | None = None
    loop: tuple[str, ...] = ("layer",)
    quiet: bool = False


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C stopped a sweep. `partial` is the result so far; cells that were not computed are NaN."""

    def __init__(self, partial: Labelled | None, done: int, cells: int):
        super().__init__(f"stopped after {done} of {cells} cells; `.partial` of this exception is the result so far")
        self.partial, self.done = partial, done


def sweep(
    f: Callable[..., Any],
    over: Over,
    *,
    inner: Mapping[str, Sequence[Any]] | Sequence[str] = ("prompt",),
    name: str = "value",
    pieces: Pieces = Pieces(),
) -> Labelled:
    """Evaluate `f(**cell)` at every cell.

    Args:
      f: a pure function of the cell's values, which are traced: numbers (indices, coefficients), arrays (vectors), or
        pytrees (edits). It returns an array of one shape. A callable pytree is data: `jax.tree_util.Partial(f, model,
        contrast)` does not compile again for another model or contrast of the same shapes. A plain function is
        structure, and the arrays that it closes over are constants of the program.
      over: a grid, as a dict from axis name to entries; or a list of cells, as dicts from name to value. The entries of
        an axis are numbers, an array or a pytree with a leading axis, or an `Axis` with labels.
      inner: the axes of what `f` returns: names, or names with labels.
      name: what the values are.
      pieces: how the cells are cut into pieces.

    Returns:
      The values, with the axes of the grid (or the axis "cell" of a list) before those of `inner`.

    Raises:
      UserError: the cells or `inner` are not of the required form, or one cell does not fit in the memory budget.
      SweepInterrupted: Ctrl-C was pressed. The exception has the result so far.

    Example:
        steered = jax.tree_util.Partial(lambda model, tokens, vector, layer, coefficient: metric(
            edit(model, at("blocks.resid_post", Add(vector, coefficient), layer=layer))(tokens)), model, tokens)
        sweep(steered, {"vector": vectors, "layer": range(12), "coefficient": [-4.0, 0.0, 4.0]})
    """
    cells = cells_of(over)
    fn = jax.tree_util.Partial(f) if jax.tree_util.all_leaves([f]) else f
    loop = [axis for axis in pieces.loop if axis in cells.axes]
    work = _Work(fn, cells.axes, loop, cells.groups(loop), cells)
    program, rows = _fitting(work, pieces)
    result: np.ndarray | None = None
    labels = lambda shape: {**cells.labels, **_inner(inner, shape)}
    view, done = _Display(name, cells.count, pieces.quiet), 0
    try:
        for group in work.groups:
            for start in range(0, len(group), rows):
                chosen = group[start : start + rows]
                values = on_host(program(*work.arguments(chosen, rows)))[: len(chosen)]
                if result is None:
                    labels(values.shape[1:])
                    result = _empty(cells.count, values)
                result[chosen] = values
                done += len(chosen)
                view.step(done)
    except KeyboardInterrupt:
        raise SweepInterrupted(_finished(result, cells, labels, name), done, cells.count) from None
    finally:
        view.close()
    finished = _finished(result, cells, labels, name)
    assert finished is not None
    return finished


@dataclasses.dataclass(frozen=True)
class _Work:
    """The function, the entries of the axes, and the cells in groups of one value of each loop axis."""

    fn: PyTree
    axes: dict[str, PyTree]
    loop: list[str]
    groups: list[np.ndarray]
    cells: Cells

    def arguments(self, chosen: np.ndarray, rows: int) -> tuple[PyTree, ...]:
        """The arguments of the program for some cells of a group, filled up to `rows` cells by the last one."""
        filled = np.concatenate([chosen, np.full(rows - len(chosen), chosen[-1])])
        index = {name: at[filled].astype(np.int32) for name, at in self.cells.index.items()}
        fixed = {name: index.pop(name)[0] for name in self.loop}
        index[""], mesh = np.zeros(rows, np.int32), jax.sharding.get_mesh()
        return self.fn, self.axes, fixed, index if mesh.empty else shard_batch(index, mesh)


@jax.jit
@automatic
def _piece(fn: Any, axes: dict[str, PyTree], fixed: dict[str, Any], rows: dict[str, Any]) -> jax.Array:
    """`fn` at the cells of one piece, [row, ...]."""

    def at_row(index: dict[str, Any]) -> jax.Array:
        index = fixed | index
        take = lambda name: jax.tree.map(lambda leaf: jnp.asarray(leaf)[index[name]], axes[name])
        return jnp.asarray(fn(**{name: take(name) for name in axes}))

    return jax.vmap(at_row)(rows)


# ---- memory -----------------------------------------------------------------------------------------------------

_programs: ByType[tuple[Any, int]] = ByType(32)
"""Compiled pieces, with the memory that they use."""


def _fitting(work: _Work, pieces: Pieces) -> tuple[Callable[..., Any], int]:
    """(the compiled program, the number of cells in a piece). It compiles once if all cells of a group fit."""
    if pieces.rows is not None and pieces.rows < 1:
        raise UserError(f"rows={pieces.rows}: a piece has at least one cell")
    mesh = jax.sharding.get_mesh()
    ways = 1 if mesh.empty else row_shards(mesh)
    largest = max(map(len, work.groups))
    rows = _multiple(largest if pieces.rows is None else min(pieces.rows, largest), ways)
    while True:
        program, used = _compiled(work, rows)
        if used <= pieces.budget:
            return program, rows
        if rows == ways or pieces.rows is not None:
            raise UserError(
                f"a piece of {rows} cells needs {used:,} bytes, more than the budget of {pieces.budget:,}: give a "
                "larger budget, or fewer prompts or rows"
            )
        n = max(-(-largest * used // (rows * pieces.budget)), -(-largest // rows) + 1)
        rows = min(_multiple(-(-largest // min(n, largest)), ways), rows - ways)


def _multiple(rows: int, ways: int) -> int:
    """The least multiple of `ways` that is not below `rows`."""
    return -(-rows // ways) * ways


def _compiled(work: _Work, rows: int) -> tuple[Any, int]:
    arguments = work.arguments(work.groups[0][:1], rows)

    def compiled() -> tuple[Any, int]:
        program = _piece.lower(*arguments).compile()
        memory = program.memory_analysis()
        if memory is None:
            raise UserError("this backend does not state the memory of a program, so a budget cannot be kept")
        return program, memory.temp_size_in_bytes + memory.output_size_in_bytes

    return _programs.get(arguments, None, compiled)


# ---- the result ---------------------------------------------------------------------------------------------------


def _empty(cells: int, values: np.ndarray) -> np.ndarray:
    kind = values.dtype if values.dtype.kind in "fc" else np.dtype(np.float64)
    kind = kind if values.dtype.kind in "fciub" else np.dtype(np.float32)  # bfloat16 is no kind of NumPy's
    return np.full((cells, *values.shape[1:]), np.nan, kind)


def _inner(inner: Mapping[str, Sequence[Any]] | Sequence[str], shape: tuple[int, ...]) -> dict[str, Sequence[Any]]:
    if isinstance(inner, Mapping):
        named = dict(inner)
        if tuple(map(len, named.values())) != shape:
            raise UserError(f"the function returns shape {shape}, and inner= has {list(map(len, named.values()))}")
        return named
    names = () if not shape and tuple(inner) == ("prompt",) else tuple(inner)
    if len(names) != len(shape):
        raise UserError(f"the function returns shape {shape}: give inner= one name for each axis, got {names}")
    return dict(zip(names, map(range, shape)))


def _finished(
    result: np.ndarray | None, cells: Cells, labels: Callable[[tuple[int, ...]], dict], name: str
) -> Labelled | None:
    if result is None:
        return None
    return Labelled(result.reshape(*cells.shape, *result.shape[1:]), labels(result.shape[1:]), name)


class _Display:
    """The progress of a sweep, shown if it takes more than two seconds."""

    def __init__(self, title: str, cells: int, quiet: bool):
        self._title, self._cells, self._quiet = title, cells, quiet
        self._began, self._view = time.monotonic(), None

    @functools.cached_property
    def _shown(self) -> Progress:
        return progress(self._title, 0, self._cells, ("cells/s",), quiet=self._quiet)

    def step(self, done: int) -> None:
        passed = time.monotonic() - self._began
        if passed > _QUIET_SECONDS and (done < self._cells or self._view is not None):
            self._view = self._shown
            self._view.values(done, {"cells/s": done / passed})
            self._view.step(done)

    def close(self) -> None:
        if self._view is not None:
            self._view.close()
