"""The verbs: functions that take a model and return a model, or an edit, or a gradient.

    sites(model)(*args)                        every named value and its type; nothing is computed
    read(model, *addresses)                    a model that also returns those values
    edit(model, *edits)                        a model in which those values are changed
    at(address, fn, layer=, pos=, ...)         an edit
    grad_at(model, *addresses)(metric)(*args)  d metric / d value at each of them, one backward pass

What `read` and `edit` return is again a callable pytree that accepts `taps=`: it goes through `jax.jit`, `grad`, `vmap`
and a checkpoint like the model itself, and surgeries nest. The innermost acts first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.surgery.activations import Activations
from jax_interp.surgery.address import Address, flatten
from jax_interp.surgery.edits import Add, Replace
from jax_interp.surgery.region import Region, RegionError, constant, index
from jax_interp.surgery.taps import Each, Edit, Read, Survey, Tapped
from jax_interp.surgery.trace import Named


def at(
    address: str | Iterable,
    fn: Callable | Each,
    *,
    layer: Any = None,
    pos: Any = None,
    head: Any = None,
    feature: Any = None,
    where: Any = None,
) -> Edit | tuple[Edit, ...]:
    """An edit: the value at `address` becomes `fn(value)`, inside the region.

    Args:
      address: where; a list of addresses makes one edit for each.
      fn: any callable pytree, value -> value of the same shape; `Each(fn)` has one set of values per layer.
        It sees the whole value; the region chooses which part of its result is kept. A plain function is structure:
        another one compiles anew, and the numbers it closes over are constants. For numbers that are data, give
        `jax.tree_util.Partial(fn, numbers)` or a registered dataclass.
      layer: the layer as data, for an address that leaves it open (`blocks.resid_post`): an index, several, or a mask.
        Sweeping it never recompiles.
      pos, head, feature: an index (negative: from the end), a list of them, a slice, or a boolean mask over that axis.
        Positions are absolute, in generation too, where negative ones count from the end of the prompt.
        `head` means key/value heads where a value has those; `feature` is the last axis.
      where: a boolean mask over the value, or over its (batch, pos).

    An index that is known and outside the value is a `RegionError` when the model is called; one that is traced data
    cannot raise, and makes the value NaN instead of being missed silently.
    """
    if isinstance(fn, type):
        raise TypeError(f"an edit takes a callable, not a class: write {fn.__name__}() or {fn.__name__}(...)")
    if not callable(fn) and not isinstance(fn, Each):
        raise TypeError(f"an edit takes a callable pytree, value -> value, got {type(fn).__name__}")
    if isinstance(layer, slice):
        raise RegionError(
            f"layer={layer}: an index, a list of them or a mask; or a range in the address, blocks.2:4.name"
        )
    fn = Each(_as_pytree(fn.fn)) if isinstance(fn, Each) else _as_pytree(fn)
    fn = jax.tree.map(_strongly_typed, fn)
    region = Region(index(pos), index(head), index(feature), where)
    edits = tuple(Edit(fn, index(layer), region, _canonical(text)) for text in flatten(address))
    return edits[0] if isinstance(address, str) else edits


def edit(model: Callable, *edits: Edit | Iterable) -> Tapped:
    """The model with its values changed by `edits` (made by `at`), in that order at one address.

    Unused edits are errors when it is called: an address that names nothing raises `AddressError`.
    """
    return Tapped(model, tuple(flat_edits(edits)))


def read(model: Callable, *addresses: str | Iterable, output: bool = True) -> Tapped:
    """The model returning `(output, Activations)`: the values at `addresses`, and nothing else is kept.

    With `output=False` it returns the `Activations` alone, and blocks after the last one they depend on are not run.
    Nested readings come back in one `Activations`; one value is read once in a nest.
    """
    names = tuple(_canonical(text) for text in flatten(addresses))
    if not names:
        raise ValueError("read needs at least one address, such as 'blocks.*.resid_post'")
    return Tapped(model, tuple(Read(name, output) for name in names))


def grad_at(model: Callable, *addresses: str | Iterable) -> Callable:
    """`grad_at(model, *addresses)(metric)(*args)` gives `(metric(output), d metric / d value at each address)`.

    One forward and one backward pass for all addresses. `metric` maps the model's output to a scalar (with
    `has_aux=True`, to `(scalar, aux)`, and the first result is that pair). The gradient is that of the value after the
    model's own edits, as an `Activations` of the values' shapes and dtypes: what attribution patching multiplies by a
    difference of activations (Nanda 2023).
    """
    names = tuple(_canonical(text) for text in flatten(addresses))

    def with_metric(metric: Callable, has_aux: bool = False) -> Callable:
        def run(*args: Any, **kwargs: Any) -> tuple[Any, Activations]:
            # the shapes of what would be read, without the model's own readings: a value may be read and derived by
            plain = without_reads(model)
            # with the output: the model's edits after the last address count, and would be missed without it
            _, types = jax.eval_shape(lambda: read(plain, *names)(*args, **kwargs))

            def perturbed(deltas: Activations) -> Any:
                edits = []
                for name, delta in deltas.items():
                    several = not Address.parse(name).is_single
                    edits.append(at(name, Each(Add(delta)) if several else Add(delta)))
                return metric(edit(model, *edits)(*args, **kwargs))

            zeros = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), types)
            return jax.value_and_grad(perturbed, has_aux=has_aux)(zeros)

        return run

    return with_metric


def sites(model: Callable) -> Callable[..., dict[str, jax.ShapeDtypeStruct]]:
    """`sites(model)(*args)` maps the address of every named value to its type. Nothing is computed, and `model` may be
    a shape too (`jax.eval_shape` of one's making).

    The order is that of the forward pass. Values that a model makes only on request (attention patterns) are included.
    """

    def run(*args: Any, **kwargs: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            address: jax.ShapeDtypeStruct(value.shape, value.dtype)
            for address, value in survey(model)(*args, **kwargs).items()
        }

    return run


def survey(model: Callable) -> Callable[..., dict[str, Named]]:
    """Like `sites`, with the names of each value's axes."""

    def run(*args: Any, **kwargs: Any) -> dict[str, Named]:
        found: dict[str, Named] = {}
        leaves, structure = jax.tree.flatten(without_reads(model))
        arrays = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

        def look(abstract: list[Any], *args: Any) -> None:
            values = iter(abstract)
            whole = [next(values) if array else leaf for leaf, array in zip(leaves, arrays, strict=True)]
            found.update(jax.tree.unflatten(structure, whole)(*args, taps=(Survey(),), **kwargs))

        jax.eval_shape(look, [leaf for leaf, array in zip(leaves, arrays, strict=True) if array], *args)
        return found

    return run


def without_reads(model: Callable) -> Callable:
    """The same model without its readings; edits stay."""
    if not isinstance(model, Tapped):
        return model
    return Tapped(without_reads(model.model), tuple(tap for tap in model.taps if not isinstance(tap, Read)))


def restore(activations: Activations) -> tuple[Edit, ...]:
    """Edits that put back every value of `activations` where it was read: patching with another run's values."""
    edits = []
    for name, value in activations.items():
        several = not Address.parse(name).is_single
        edits.append(at(name, Each(Replace(value)) if several else Replace(value)))
    return tuple(edits)  # type: ignore[return-value]


def _canonical(text: str) -> str:
    return str(Address.parse(text))


def _as_pytree(fn: Callable) -> Callable:
    """`fn` where it is a pytree; a plain function, which `jax.jit` would refuse as a leaf, made one without leaves."""
    if not jax.tree_util.all_leaves([fn]):
        return fn
    if hasattr(fn, "__name__") or isinstance(fn, functools.partial):
        return jax.tree_util.Partial(fn)
    kind = type(fn).__name__
    raise TypeError(
        f"an edit's {kind} is no pytree, so JAX cannot take it as an argument: make it a frozen dataclass and register "
        f"it, @jax.tree_util.register_dataclass @dataclass(frozen=True) class {kind}; its fields are data then"
    )


def _strongly_typed(leaf: Any) -> Any:
    """A scalar or NumPy array as a device array of the dtype it would get: no spelling of a value recompiles."""
    if isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic)):
        return constant(leaf, jax.dtypes.canonicalize_dtype(np.result_type(leaf)))
    return constant(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf


def flat_edits(edits: Iterable) -> Iterable[Edit]:
    """The edits in a nested collection of them. Raises TypeError for what is none."""
    for one in edits:
        if isinstance(one, Edit):
            yield one
        elif isinstance(one, Iterable) and not isinstance(one, str):
            yield from flat_edits(one)
        else:
            raise TypeError(f"edit takes edits made by at(address, fn), got {type(one).__name__}: {one!r}")
