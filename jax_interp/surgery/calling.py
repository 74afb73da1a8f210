"""`call`: a jitted call of a model under surgery. It checks indices, which a compiled program cannot do."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeGuard

import jax
import jax.core
import numpy as np
from jaxtyping import Array

from jax_interp.surgery.contract import Model
from jax_interp.surgery.region import Bounds, Chosen, Span, check_known
from jax_interp.surgery.taps import Edit, IndexBounds, Resume

_MAX_PLANS = 1024


def call(model: Model, *args: Any, **kwargs: Any) -> Any:
    """`model(*args, **kwargs)`, compiled by `jax.jit` with the model as an argument, and checked before it runs.

    A new value (another vector, coefficient, layer, position, token) does not compile again. Another kind of surgery,
    or another shape, does.

    In a compiled program an index is data. An index outside the value cannot raise an error there, so it makes the
    value NaN. `call` raises the error before the program runs. To find the bounds of the indices, the first call of a
    surgery with indices traces the model one more time. Later calls only compare numbers. The values of tokens, masks
    and caches are checked by the model's `check_inputs`, if it has this method.

    Args:
      model: a model, under surgery or not.
      args: the arguments of the model: arrays, or pytrees of arrays.
      kwargs: the keyword arguments of the model. A plain `bool`, `int`, `str` or function is structure
        (`last_only=True`, `cache=64`, a remat policy). Everything else is data.

    Returns:
      What the model returns.

    Raises:
      RegionError: `layer=`, `pos=`, `head=` or `feature=` of an edit is outside the model or the value.
      AddressError: an address names nothing.
      UserError: an input is not what the model takes (a token id outside the vocabulary, for example), if the model
        has a method `check_inputs`.

    Example:
        logits, acts = call(read(model, "blocks.*.resid_post"), tokens)
        ablated = [call(edit(model, at("blocks.1.attn.z", Zero(), head=h)), tokens) for h in range(8)]  # one program
    """
    structure = {name: value for name, value in kwargs.items() if _is_structure(value)}
    data = {name: value for name, value in kwargs.items() if name not in structure}
    static = tuple(sorted(structure.items()))
    if (check := getattr(model, "check_inputs", None)) is not None:
        check(*args, **kwargs)
    _check_indices(static, model, args, data)
    return compiled_call(static, model, args, data)


@functools.partial(jax.jit, static_argnums=0)
def compiled_call(static: tuple[tuple[str, Any], ...], model: Model, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The compiled part of `call`. `static` are the keyword arguments that are structure."""
    return model(*args, **kwargs, **dict(static))


def _is_structure(value: Any) -> bool:
    if isinstance(value, (bool, int, str, np.bool_, np.integer)):
        return True
    return callable(value) and jax.tree_util.all_leaves([value])


def is_known(array: Any) -> TypeGuard[Array]:
    """Whether `array` is an array with known values: not traced, and on this host."""
    if not isinstance(array, (np.ndarray, jax.Array)) or isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


# ---- indices --------------------------------------------------------------------------------------------------

Plan = list[tuple[tuple[int, ...], Bounds, str]]
"""For each index of a surgery: the numbers of its leaves (two for a `Span`), its bounds, its name in messages."""

_plans: OrderedDict[Hashable, Plan] = OrderedDict()


def _check_indices(static: tuple, model: Model, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise RegionError for a known index outside its bounds."""
    indices = list(_indices(model))
    if not indices:
        return
    leaves, structure = jax.tree.flatten((model, args, kwargs))
    key = (structure, static, tuple(map(_type, leaves)))
    plan = _plans.get(key)
    if plan is None:
        plan = _plan(lambda f, args, kwargs: f(*args, **kwargs, **dict(static)), leaves, structure, indices)
        _plans[key] = plan
        if len(_plans) > _MAX_PLANS:
            _plans.popitem(last=False)
        return  # making the plan has checked these indices already
    for numbers, bounds, what in plan:
        chosen = [indices[i] for i in numbers]
        check_known(Span(*chosen) if len(chosen) == 2 else chosen[0], bounds, what)


def _indices(model: Model) -> Iterator[Array]:
    """The leaves of `layer=`, `pos=`, `head=` and `feature=` of every edit, and the layer at which the model is
    resumed, if their values are known."""
    for node in jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, (Edit, Resume))):
        if isinstance(node, Resume) and is_known(node.layer):
            yield node.layer
        if isinstance(node, Edit):
            region = (node.layer, node.region.pos, node.region.head, node.region.feature)
            yield from (leaf for leaf in jax.tree.leaves(region) if is_known(leaf))


def _plan(run: Callable[..., Any], leaves: list[Any], structure: Any, indices: list[Array]) -> Plan:
    """Find the bounds of every index by an abstract evaluation of the model in which the indices are known.

    Raises the errors of the model for indices outside its values.
    """
    number_of = {id(leaf): i for i, leaf in enumerate(indices)}
    abstract = [hasattr(leaf, "shape") and id(leaf) not in number_of for leaf in leaves]
    bounds_of: list[tuple[Chosen, Bounds, str]] = []

    def look(arrays: list[Array]) -> None:
        values = iter(arrays)
        whole = [next(values) if is_abstract else leaf for leaf, is_abstract in zip(leaves, abstract, strict=True)]
        model, args, kwargs = jax.tree.unflatten(structure, whole)
        bounds_of.extend(run(model, args, kwargs | {"taps": (IndexBounds(),)}))

    jax.eval_shape(look, [leaf for leaf, is_abstract in zip(leaves, abstract, strict=True) if is_abstract])
    plan: Plan = []
    for chosen, bounds, what in bounds_of:
        numbers = tuple(number_of.get(id(leaf), -1) for leaf in jax.tree.leaves(chosen))
        if -1 not in numbers and (numbers, bounds, what) not in plan:
            plan.append((numbers, bounds, what))
    return plan


def _type(leaf: Any) -> Hashable:
    return (leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else type(leaf)
