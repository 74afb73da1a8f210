"""The verbs of surgery: functions that take a model and return a model, an edit, or a gradient.

    sites(model)(*args)                        every named value and its type; nothing is computed
    read(model, *addresses)                    a model that also returns the values at these addresses
    values_at(model, *addresses)(*args)        only the values, of a model that may have later edits
    edit(model, *edits)                        a model that changes values by these edits
    at(address, fn, layer=, pos=, ...)         an edit
    grad_at(model, *addresses)(metric)(*args)  d metric / d value at each address, from one backward pass

`read` and `edit` return a model: a callable pytree that accepts `taps=`. It works with `jax.jit`, `grad`, `vmap` and
checkpoints as the original model does. Surgeries can be nested. The innermost surgery acts first.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool

from jax_interp.surgery.activations import Activations
from jax_interp.surgery.address import Address, AddressError, canonical, flatten
from jax_interp.surgery.contract import Model
from jax_interp.surgery.edits import Add, Replace
from jax_interp.surgery.region import Index, Region, RegionError, Span, constant, index
from jax_interp.surgery.taps import Each, Edit, Read, Survey, Tapped, Wrapper
from jax_interp.surgery.trace import NamedValue


def at(
    address: str | Iterable,
    fn: Callable | Each,
    *,
    layer: Index | None = None,
    pos: Index | None = None,
    head: Index | None = None,
    feature: Index | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Edit | tuple[Edit, ...]:
    """An edit: the value at `address` becomes `fn(value)`, inside a region.

    Args:
      address: the address of the value, or a list of addresses.
      fn: a callable pytree, value -> value of the same shape, or `Each(fn)` with one set of values per layer. It gets
        the whole value; the region decides which part of the result is kept. A plain function is structure: another
        function compiles again, and the numbers that it closes over are constants. To make numbers data, give
        `jax.tree_util.Partial(fn, numbers)` or a registered dataclass.
      layer: the layer as data, for an address without a layer (`blocks.resid_post`): an index, a list of indices, or a
        boolean mask over the layers. Another layer does not compile again.
      pos: the positions: an index (negative: from the end), a list of indices, a slice, or a boolean mask over the
        axis. Positions are absolute, also in generation, where negative positions count from the end of the prompt.
      head: the heads, in the same forms as `pos`. For a value with key/value heads, these are key/value heads.
      feature: the entries of the last axis, in the same forms as `pos`.
      where: a boolean mask over the value, or over its axes (batch, pos).

    Returns:
      An edit, for `edit`. For a list of addresses, a tuple of edits.

    Raises:
      TypeError: `fn` is a class, not callable, or not a pytree.
      RegionError: an index is not valid, or `layer=` is a slice. An index outside the value raises when the model is
        called, if the index is known. A traced index cannot raise; it makes the value NaN.
      AddressError: `address` is not a valid address.

    Example:
        at("blocks.1.attn.z", Zero(), head=3)                          # ablate a head
        at("blocks.2.resid_post", Add(vector, 4.0), pos=-1)            # steer at the last position
        at("blocks.resid_post", Each(Replace(donor)), layer=l, pos=p)  # patch; sweep l and p with jax.vmap
    """
    if isinstance(fn, type):
        raise TypeError(f"an edit takes a callable, not a class: write {fn.__name__}() or {fn.__name__}(...)")
    if not callable(fn) and not isinstance(fn, Each):
        raise TypeError(f"an edit takes a callable pytree, value -> value, got {type(fn).__name__}")
    chosen = index(layer) if not isinstance(layer, slice) else None
    if isinstance(layer, slice) or isinstance(chosen, Span):
        raise RegionError(
            f"layer={layer}: give an index, a list of indices or a mask; or write a range in the address, "
            "blocks.2:4.name"
        )
    fn = Each(_as_pytree(fn.fn)) if isinstance(fn, Each) else _as_pytree(fn)
    fn = jax.tree.map(strongly_typed, fn)
    region = Region(index(pos), index(head), index(feature), where)
    edits = tuple(Edit(fn, chosen, region, canonical(text)) for text in flatten(address))
    return edits[0] if isinstance(address, str) else edits


def edit(model: Model, *edits: Edit | Iterable) -> Tapped:
    """The model with some of its values changed.

    Args:
      model: a model, under surgery or not.
      edits: edits made by `at`, or nested lists of edits. Edits at the same address act in this order.

    Returns:
      A model. When it is called, it raises `AddressError` if an edit's address names no value.

    Raises:
      TypeError: one of `edits` was not made by `at`.

    Example:
        steered = edit(model, at("blocks.2.resid_post", Add(vector)), at("blocks.1.attn.z", Zero(), head=3))
        logits = call(steered, tokens)
    """
    return Tapped(model, tuple(flat_edits(edits)))


def read(model: Model, *addresses: str | Iterable, output: bool = True) -> Tapped:
    """The model that also returns some of its values.

    Args:
      model: a model, under surgery or not.
      addresses: the values to read. An address of several layers (`blocks.*.resid_post`) is read as one array
        `[layer, ...]`. Nested surgeries may read each value only once.
      output: whether to return the model's own output. If False, the blocks after the last block that the values need
        are not run. Of nested readings, the outermost decides.

    Returns:
      A model that returns `(output, Activations)`, or only the `Activations` with `output=False`. Nested surgeries
      return all their readings in one `Activations`. When the model is called, it raises `AddressError` if an address
      names no value.

    Raises:
      AddressError: one of `addresses` is not a valid address.
      ValueError: there is no address.

    Example:
        logits, acts = call(read(model, "blocks.*.resid_post", "blocks.1.attn.pattern"), tokens)
        acts["blocks.*.resid_post"]    # [layer, batch, pos, d_model]
    """
    names = tuple(canonical(text) for text in flatten(addresses))
    if not names:
        raise ValueError("read needs at least one address, such as 'blocks.*.resid_post'")
    return Tapped(model, tuple(Read(name, output) for name in names))


def values_at(model: Model, *addresses: str | Iterable) -> Callable[..., Activations]:
    """The values at some addresses, without the output: `values_at(model, *addresses)(*args)`.

    As with `read(..., output=False)`, blocks after the last value are not run. But the model may have edits that act
    later, which `read` refuses. They do not change these values. Methods that are given a model use this function.

    Args:
      model: a model, under surgery or not.
      addresses: the values to read, as in `read`.

    Returns:
      A function of the model's arguments that returns `Activations`. It raises `AddressError` if one of `addresses`, or
      an address of the model's edits, names no value.
    """
    first, whole = read(model, *addresses, output=False), read(model, *addresses)

    def run(*args: Any, **kwargs: Any) -> Activations:
        try:
            return first(*args, **kwargs)
        except AddressError:  # an edit acts after the last value; only the whole model has its address
            return whole(*args, **kwargs)[1]

    return run


def grad_at(model: Model, *addresses: str | Iterable) -> Callable:
    """The gradient of a metric with respect to named values: `grad_at(model, *addresses)(metric)(*args)`.

    One forward and one backward pass give the gradients at all addresses. If the model has edits, the gradient is with
    respect to the edited values. Attribution patching multiplies it by a difference of activations (Nanda 2023).

    Args:
      model: a model, under surgery or not.
      addresses: where to differentiate.

    Returns:
      A function of `metric` and `has_aux=False`. `metric` maps the model's output to a scalar, or to `(scalar, aux)` if
      `has_aux=True`. The function returns another function, which takes the model's arguments and returns
      `(metric(output), gradients)`. `gradients` is an `Activations` with the shapes and dtypes of the values.

    Raises:
      AddressError: one of `addresses` is not a valid address.

    Example:
        value, grads = grad_at(model, "blocks.*.attn.z")(lambda logits: logits[0, -1, 7])(tokens)
        grads["blocks.*.attn.z"]    # [layer, batch, pos, head, d_head]
    """
    names = tuple(canonical(text) for text in flatten(addresses))

    def with_metric(metric: Callable, has_aux: bool = False) -> Callable:
        def run(*args: Any, **kwargs: Any) -> tuple[Any, Activations]:
            # Drop the model's own readings: the same value may be read there and differentiated here.
            plain = without_reads(model)
            # Keep the output: without it, edits after the last address would be reported as having no effect.
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


def sites(model: Model) -> Callable[..., dict[str, jax.ShapeDtypeStruct]]:
    """The address and type of every named value of a model: `sites(model)(*args)`. Nothing is computed.

    Args:
      model: a model, under surgery or not. Its arrays may be abstract (`jax.eval_shape` of a function that makes the
        model).

    Returns:
      A function of the model's arguments. It returns a dict from address to type, in the order of the forward pass. The
      dict includes values that the model makes only on request (attention patterns).

    Example:
        sites(model)(tokens)["blocks.1.attn.pattern"].shape    # (batch, head, query, key)
    """

    def run(*args: Any, **kwargs: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            address: jax.ShapeDtypeStruct(value.shape, value.dtype)
            for address, value in survey(model)(*args, **kwargs).items()
        }

    return run


def survey(model: Model) -> Callable[..., dict[str, NamedValue]]:
    """Like `sites`, with the names of the axes of each value."""

    def run(*args: Any, **kwargs: Any) -> dict[str, NamedValue]:
        named: dict[str, NamedValue] = {}
        leaves, structure = jax.tree.flatten(without_reads(model))
        arrays = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

        def look(abstract: list[Any], *args: Any) -> None:
            values = iter(abstract)
            whole = [next(values) if array else leaf for leaf, array in zip(leaves, arrays, strict=True)]
            named.update(jax.tree.unflatten(structure, whole)(*args, taps=(Survey(),), **kwargs))

        jax.eval_shape(look, [leaf for leaf, array in zip(leaves, arrays, strict=True) if array], *args)
        return named

    return run


def without_reads(model: Model) -> Model:
    """The same model without its readings; edits stay."""
    if not isinstance(model, Wrapper):
        return model
    inside = dataclasses.replace(model, model=without_reads(model.model))  # type: ignore[type-var]
    if not isinstance(inside, Tapped):
        return inside
    return dataclasses.replace(inside, taps=tuple(tap for tap in inside.taps if not isinstance(tap, Read)))


def restore(activations: Activations) -> tuple[Edit, ...]:
    """Edits that patch the values of one run into another run, each at the address where it was read.

    Args:
      activations: the activations that a model under `read` returned.

    Returns:
      One edit for each address that was read.

    Example:
        _, acts = call(read(model, "blocks.*.attn.pattern"), clean)
        call(edit(model, restore(acts)), corrupt)    # the corrupt run with the attention of the clean run
    """
    edits = []
    for name, value in activations.items():
        several = not Address.parse(name).is_single
        edits.append(at(name, Each(Replace(value)) if several else Replace(value)))
    return tuple(edits)  # type: ignore[return-value]


def _as_pytree(fn: Callable) -> Callable:
    """`fn` as a pytree. A plain function becomes a `Partial` without leaves, since `jax.jit` refuses it as a leaf."""
    if not jax.tree_util.all_leaves([fn]):
        return fn
    if hasattr(fn, "__name__") or isinstance(fn, functools.partial):
        return jax.tree_util.Partial(fn)
    kind = type(fn).__name__
    raise TypeError(
        f"the edit {kind} is no pytree, so JAX cannot take it as an argument: make it a frozen dataclass and register "
        f"it, @jax_interp.register_dataclass @dataclass(frozen=True) class {kind}; its fields are then data"
    )


def strongly_typed(leaf: Any) -> Any:
    """A scalar or NumPy array as a strongly typed device array, so that a Python float and an array compile once."""
    if isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic)):
        return constant(leaf, jax.dtypes.canonicalize_dtype(np.result_type(leaf)))
    return constant(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf


def flat_edits(edits: Iterable) -> Iterable[Edit]:
    """The edits in a nested collection. Raises TypeError for anything else in it."""
    for item in edits:
        if isinstance(item, Edit):
            yield item
        elif isinstance(item, Iterable) and not isinstance(item, str):
            yield from flat_edits(item)
        else:
            raise TypeError(f"edit takes edits made by at(address, fn), got {type(item).__name__}: {item!r}")
