"""Where a trainer keeps its arrays: on one device, or on a mesh.

    with placed(place, rules) as there:                       place: a mesh, a function, or None
        model, batch_at = there.frozen(model, model_rules(model)), there.batches(batch_at)
        state = there.state(init(model, batch_at))
        ...                                                   fit, export

Steps of trainers are written for any device. `automatic` lets the compiler choose the shardings inside a step, also
where the mesh has explicit axes. Otherwise each product in a step would have to name the sharding of its result.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_interp.core.leaves import PyTree, flatten, unflatten
from jax_interp.training.meshes import present, row_axes
from jax_interp.training.row_batches import batches_on
from jax_interp.training.sharding import Rules, check_rows, put, shard, shardings, specs, used

State = TypeVar("State")
Tree = TypeVar("Tree")
Batch = TypeVar("Batch")
Function = TypeVar("Function", bound=Callable[..., Any])

Place = Mesh | Callable[[Any], Any] | None
"""A mesh; or a function that shards a state, for use inside `jax.set_mesh(mesh)`; or None: one device."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Places the arrays of one run. `placed` makes it.

    Attributes:
      mesh: the mesh. None: nothing is placed, and arrays stay where they are.
      of_state: a function that shards the state.
    """

    mesh: Mesh | None
    of_state: Callable[[Any], Any]

    def state(self, state: State) -> State:
        """The state on the mesh."""
        return self.of_state(state)

    def frozen(self, tree: Tree, rules: Rules) -> Tree:
        """A tree that is not trained, on the mesh. A leaf that is on the mesh already keeps its sharding; `rules` say
        where the other leaves are placed."""
        if self.mesh is None:
            return tree
        own = {name: _spec_on(self.mesh, leaf) for name, leaf in flatten(tree).items()}
        if any(spec is None for spec in own.values()):
            wanted = flatten(shardings(tree, rules, self.mesh))
        else:
            wanted = {}
        places = {n: wanted[n] if spec is None else NamedSharding(self.mesh, spec) for n, spec in own.items()}
        return jax.tree.map(put, tree, unflatten(tree, places))

    def batches(self, batch_at: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """`batch_at` with each batch on the mesh: its rows are split over `replicate`, `data` and `fsdp`. Of
        `RowBatches`, a process makes only the rows of its own devices."""
        return batch_at if self.mesh is None else batches_on(batch_at, self.mesh)


def _spec_on(mesh: Mesh, leaf: Any) -> P | None:
    """The spec of a leaf that is on the devices of `mesh`. None for another leaf."""
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.shape != mesh.shape:
        return None
    return sharding.spec if sharding.device_set == set(mesh.devices.flat) else None


@contextlib.contextmanager
def placed(place: Place, rules: Callable[[Any], Rules]) -> Iterator[Placement]:
    """The placement of a run. The mesh is active inside the block.

    Args:
      place: a mesh. Or a function that returns the state with its shardings; the mesh is then the one of
        `jax.set_mesh`. Or None: nothing is placed.
      rules: a function from the state to its sharding rules. It is used if `place` is a mesh.

    Raises:
      UserError: a mesh axis does not divide an axis of a leaf.

    Example:
        with placed(make_mesh(data=2), rules) as there:
            state = there.state(state)
    """
    if isinstance(place, Mesh):
        with jax.set_mesh(place):
            yield Placement(place, lambda state: shard(state, rules(state), place))
    elif place is None:
        yield Placement(None, lambda state: state)
    else:
        around = jax.sharding.get_mesh()
        yield Placement(None if around.empty else around, place)


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[object]:
    """A context in which the mesh is active. None: no mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def split_rows(batch: Tree) -> Tree:
    """Split the rows of a batch that is made inside a step, as in `shard_batch`. Unchanged without a mesh.

    Raises:
      UserError: the rows cannot be split equally.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return batch
    split = jax.sharding.reshard if mesh.are_all_axes_explicit else jax.lax.with_sharding_constraint

    def of_leaf(x: Any) -> Any:
        if not x.ndim:
            return x
        check_rows(x.shape[0], mesh)
        return split(x, P(row_axes(mesh)))

    return jax.tree.map(of_leaf, batch)


def replicated(tree: PyTree) -> Rules:
    """Sharding rules that replicate every leaf."""
    return used((), tree)


def automatic(function: Function, rules: Callable[[Any], Rules] = replicated) -> Function:
    """A function whose shardings the compiler chooses, also on a mesh with explicit axes.

    Elsewhere the function is unchanged. An argument that is not a pytree of arrays, such as a config, is passed as it
    is.

    Args:
      function: the function.
      rules: a function from the result to its sharding rules. They are used on a mesh with explicit axes. By default
        the result is replicated.
    """

    def places(of_arrays: Callable[..., Any], *arrays: PyTree) -> PyTree:
        kinds = jax.eval_shape(jax.sharding.auto_axes(of_arrays, out_sharding=P()), *arrays)
        mesh = jax.sharding.get_abstract_mesh()
        return unflatten(kinds, {name: present(spec, mesh) for name, spec in specs(kinds, rules(kinds)).items()})

    return _automatic(function, places)


def automatic_step(step: Function) -> Function:
    """`automatic` for a training step, which returns (state, metrics). The state keeps its shardings.

    Args:
      step: the step. Its first argument that is a pytree of arrays is the state.

    Example:
        step = automatic_step(step)  # step(config, state, batch) -> (state, metrics)
    """
    return _automatic(step, lambda _, state, *rest: (jax.tree.map(lambda x: jax.typeof(x).sharding.spec, state), P()))


def automatic_rows(function: Function, last: Callable[[Any], Any] = lambda module: None) -> Function:
    """`automatic` for a method `f(module, x, ...)` whose result has the leading axes of `x`, and keeps their shardings.

    Args:
      function: the method. Its first two arguments are a pytree of arrays and the input.
      last: a function from the module to the mesh axes of the last axis of the result. By default it is not split.
    """

    def places(of_arrays: Callable[..., Any], module: PyTree, x: jax.Array, *rest: PyTree) -> P:
        kind = jax.eval_shape(jax.sharding.auto_axes(of_arrays, out_sharding=P()), module, x, *rest)
        spec = jax.typeof(x).sharding.spec
        return P(*spec) if kind.shape == x.shape else P(*spec[: kind.ndim - 1], last(module))

    return _automatic(function, places)


def _automatic(function: Function, places: Callable[..., PyTree]) -> Function:
    @wraps(function)
    def with_automatic_axes(*args: Any, **kwargs: Any) -> Any:
        if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
            return function(*args, **kwargs)
        given: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
        arrays = {name: argument for name, argument in given.items() if _is_arrays(argument)}

        def of_arrays(*values: PyTree) -> Any:
            merged = given | dict(zip(arrays, values, strict=True))
            return function(*(merged[i] for i in range(len(args))), **{name: merged[name] for name in kwargs})

        out = places(of_arrays, *arrays.values())
        return jax.sharding.auto_axes(of_arrays, out_sharding=out)(*arrays.values())

    return with_automatic_axes  # type: ignore[return-value]  (the signature is that of `function`)


def _is_arrays(argument: Any) -> bool:
    return all(isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in jax.tree.leaves(argument))
