"""DAS over layers, positions, dimensions and seeds as one compiled program.

    over = SweepOver("resid_post", positions=("x", "last"), dimensions=(1, 4), seeds=3)
    grid = alignment_sweep(model, train, test, over, AlignmentConfig(DAS(1)))
    grid.sel(intervention=0).mean("seed")        IIA of the learned subspaces [layer, pos, dimension]

Every cell is a whole training run of its own. `cells` of them run side by side under `vmap`: the sources run once for
all cells, the bases once for each. Layers and positions are data, so the program does not grow with the grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.causal_variables.accuracy import cross_entropy_of, outcomes
from jax_interp.circuits.causal_variables.align import AlignmentConfig, first_keys, optimizer_of, steps_of_pairs
from jax_interp.circuits.causal_variables.features import Subspace, Whole
from jax_interp.circuits.causal_variables.interchange import Location, Where, check_locations, interchanged, take_map
from jax_interp.circuits.causal_variables.interchange_data import InterchangeData
from jax_interp.circuits.causal_variables.methods import DAS, Params, orthonormal
from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Address, Model, depth_of

INTERVENTIONS = ("DAS", "random subspace", "nothing", "whole value")


@dataclasses.dataclass(frozen=True)
class SweepOver:
    """The grid of `alignment_sweep`.

    Args:
      name: the name of the value within a block, such as "resid_post" or "mlp_out".
      positions: names of positions, integers, or tuples of them that are exchanged together. None: all at once.
      layers: the layers. None: all.
      dimensions: the dimensions of the subspaces.
      seeds: the number of training runs of each cell.
      head: one head of a value with heads.
    """

    name: str
    positions: Sequence[str | int | tuple[str | int, ...] | None] = (None,)
    layers: Sequence[int] | None = None
    dimensions: Sequence[int] = (1,)
    seeds: int = 1
    head: int | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1 or not len(self.positions) or not len(self.dimensions) or self.layers == ():
            raise UserError(f"{self}: give at least one position, layer, dimension and seed")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Cell:
    """One cell of the grid, as data."""

    layer: Int[Array, ""]
    position: Int[Array, ""]
    dimension: Int[Array, ""]
    seed: Int[Array, ""]


def alignment_sweep(
    model: Model,
    train: InterchangeData,
    test: InterchangeData,
    over: SweepOver,
    config: AlignmentConfig,
    *,
    cells: int = 16,
) -> Labelled:
    """Train a subspace in every cell of a grid, and measure its interchange-intervention accuracy on test pairs.

    Args:
      model: any model in which every chosen block has the value.
      train: the training pairs, with one source.
      test: the test pairs.
      over: the grid.
      config: the training. Its method must be `DAS`; the dimensions are those of the grid.
      cells: how many cells run side by side. It bounds the memory; the result is the same up to rounding.

    Returns:
      IIA [intervention, layer, pos, dimension, seed]. The interventions are the learned subspace, a random subspace of
      the same dimension, the whole value, and nothing.

    Raises:
      UserError: a cell does not fit the model or the data.
    """
    layers = list(range(depth_of(model)) if over.layers is None else over.layers)
    if not isinstance(config.method, DAS) or train.sources.shape[0] != 1:
        raise UserError("a sweep trains DAS on data with one source: use align for other methods and more sources")
    if len(train) < config.batch or cells < 1 or not len(test):
        raise UserError(f"{len(train)} training and {len(test)} test pairs, batch={config.batch}, cells={cells}")
    width = 0
    for layer in layers:
        for position in over.positions:
            location = Location(f"blocks.{layer}.{over.name}", position, over.head)
            for data in (train, test):
                width = check_locations(model, data, [location], [None])[0]
    for dimension in over.dimensions:
        DAS(dimension).check(width, None)
    shape = (len(layers), len(over.positions), len(over.dimensions), over.seeds)
    at = [jnp.asarray(index.reshape(-1), jnp.int32) for index in np.indices(shape)]
    depth = jnp.asarray([Address.parse(f"blocks.{i}.x").resolve(depth_of(model))[0] for i in layers], jnp.int32)  # type: ignore[index]
    grid = _Cell(depth[at[0]], at[1], jnp.asarray(list(over.dimensions), jnp.int32)[at[2]], at[3] + config.seed)
    takes = tuple(_takes(data, over) for data in (train, test))
    static = _Static(over.name, over.head, width, max(over.dimensions), config, cells)
    hits, nan = _run(model, (train, test), takes, grid, jnp.asarray(steps_of_pairs(len(train), config)), static)
    if bool(nan.any()):
        raise UserError(f"the logits are NaN in {int(nan.sum())} of {nan.size} cells")
    axes = {
        "intervention": INTERVENTIONS, "layer": layers, "pos": [_label(p) for p in over.positions],
        "dimension": list(over.dimensions), "seed": list(range(config.seed, config.seed + over.seeds)),
    }  # fmt: skip
    return Labelled(np.moveaxis(np.asarray(hits).reshape(*shape, -1), -1, 0), axes, "IIA")


@dataclasses.dataclass(frozen=True)
class _Static:
    name: str
    head: int | None
    width: int
    largest: int
    config: AlignmentConfig
    cells: int


def _label(position: Any) -> Any:
    return "all" if position is None else "+".join(map(str, position)) if isinstance(position, tuple) else position


def _takes(data: InterchangeData, over: SweepOver) -> Int[Array, "position pair pos"] | None:
    """The map of each position. None: values without positions, or all positions."""
    if tuple(over.positions) == (None,):
        return None
    names = [p if isinstance(p, tuple) else () if p is None else (p,) for p in over.positions]
    everything = jnp.broadcast_to(jnp.arange(data.base.shape[1], dtype=jnp.int32)[None, :], data.base.shape[:2])
    found = [take_map(data, name, 0) for name in names]
    return jnp.stack([everything if one is None else one for one in found])


@jax.jit(static_argnames="static")
def _run(
    model: Model,
    data: tuple[InterchangeData, InterchangeData],
    takes: tuple[Array | None, Array | None],
    grid: _Cell,
    steps: Int[Array, "step batch"],
    static: _Static,
) -> tuple[Float[Array, "cell intervention"], Bool[Array, "cell"]]:
    train, test = data
    config = static.config
    optimizer, largest = optimizer_of(config), DAS(static.largest)

    def where(cell: _Cell, take: Array | None, rows: Array) -> Where:
        here = None if take is None else take[cell.position][rows]
        head = None if static.head is None else jnp.int32(static.head)
        return Where(here, cell.layer, head, f"blocks.{static.name}")

    def of_cell(cell: _Cell) -> tuple[Array, Array]:
        mask = (jnp.arange(static.largest, dtype=jnp.int32) < cell.dimension).astype(jnp.float32)
        key = first_keys(cell.seed, 1)[0]
        subspace = lambda params: Subspace(orthonormal(params["basis"]), mask)
        first, random = (largest.init(k, static.width, None) for k in (key, jax.random.fold_in(key, 1)))

        def step(carry: tuple[Params, Any], rows: Array) -> tuple[tuple[Params, Any], None]:
            params, state = carry
            part = train.rows(rows)

            def loss(params: Params) -> Array:
                logits = interchanged(model, part, [where(cell, takes[0], rows)], [subspace(params)])
                return jnp.mean(cross_entropy_of(logits, part))

            return optimizers.update(optimizer, jax.grad(loss)(params), state, params), None

        params, _ = jax.lax.scan(step, (first, optimizers.init(optimizer, first)), steps)[0]
        learned, chance = subspace(params), subspace(random)
        return accuracies([learned, chance, Subspace(learned.basis, jnp.zeros_like(mask))], cell)

    def accuracies(subspaces: list[Subspace], cell: _Cell) -> tuple[Array, Array]:
        size = min(config.batch, len(test))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *subspaces)
        batches = jnp.arange(-(-len(test) // size) * size, dtype=jnp.int32).reshape(-1, size)

        def of_batch(rows: Array) -> tuple[Array, Array]:
            index = rows % len(test)
            part = test.rows(index)
            run = lambda features: outcomes(interchanged(model, part, [where(cell, takes[1], index)], [features]), part)
            found = [jax.vmap(run)(stacked), jax.tree.map(lambda x: x[None], run(Whole()))]
            right, _, _, nan = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
            return jnp.sum(right & (rows < len(test))[None, :], axis=1), jnp.any(nan)

        hits, nan = jax.lax.map(of_batch, batches)
        return jnp.sum(hits, axis=0).astype(jnp.float32) / len(test), jnp.any(nan)

    # Filled up to whole groups of cells: `lax.map` would compile another body for an incomplete last group.
    size = min(static.cells, len(grid.seed))
    index = jnp.arange(-(-len(grid.seed) // size) * size) % len(grid.seed)
    found = jax.lax.map(of_cell, jax.tree.map(lambda leaf: leaf[index], grid), batch_size=size)
    return jax.tree.map(lambda leaf: leaf[: len(grid.seed)], found)
