"""Model surgery: find and replace parts of a model. This is the one file that uses penzai.

A Flax NNX module is a pytree, so penzai's `pz.select` works on it. The functions here cover the common cases. For other
cases, `select(model)` returns penzai's selection (`.at_instances_of(cls)`, `.where(...)`, `.apply`, `.set`).

In a model whose blocks are stacked, a part of the stacked block belongs to all its layers at once: its arrays have a
leading layer axis. `replace_each` changes the part layer by layer, and `replan(model, unroll=...)` makes one layer a
separate block. docs/surgery-recipes.md has complete examples.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from jax_interp.core.errors import UserError
from jax_interp.surgery.contract import LayeredConfig, LayeredModel
from jax_interp.surgery.stack import depth_of, iter_blocks, iter_segments, replan, with_blocks

M = TypeVar("M")
Layered = TypeVar("Layered", bound=LayeredModel)
Part = Any  # anything in a model: a module, a Linear, a parameter


class SelectionError(UserError, LookupError):
    """A path or a class selects nothing in the model."""


def select(model: PyTree) -> Any:
    """penzai's selection over a model: `select(model).at_instances_of(MLP).apply(fn)`."""
    from penzai import pz

    selection = pz.select(model)
    return _selection_class()(selection.selected_by_path, selection.remainder)


@functools.cache
def _selection_class() -> type:
    """penzai's `Selection`, whose `at_equal_to` also skips parameters: `==` compares their elements."""
    from penzai import pz

    arrays = (jax.Array, np.ndarray, nnx.Variable)

    @pz.pytree_dataclass(has_implicitly_inherited_fields=True)
    class Selection(pz.Selection):
        def at_equal_to(self, template: Any) -> Any:
            if isinstance(template, arrays):
                raise SelectionError("at_equal_to compares no arrays: use select(model).at_subtrees_where(fn)")
            return self.at_subtrees_where(lambda part: not isinstance(part, arrays) and bool(part == template))

        def at_subtrees_where(self, *args: Any, **options: Any) -> Any:
            found = super().at_subtrees_where(*args, **options)
            return Selection(found.selected_by_path, found.remainder)

        def at(self, *args: Any, **options: Any) -> Any:
            found = super().at(*args, **options)
            return Selection(found.selected_by_path, found.remainder)

    return Selection


def replace(model: M, what: type | str, fn: Callable[[Part], Part]) -> M:
    """The model with some of its parts replaced by `fn(part)`. The model itself is unchanged.

    Args:
      model: the model.
      what: a class, to select all parts of this class, or a path: `"blocks.3.mlp"`, `"blocks.*.attn.q"`, `"unembed"`.
        A path to one layer works only if this layer is unrolled. `blocks.*` selects stacked and unrolled blocks.
      fn: takes a part and returns its replacement. The arrays of a stacked part have a leading layer axis; pass
        `jax.vmap(fn)` to treat each layer separately.

    Returns:
      A new model that shares all other arrays with `model`.

    Raises:
      SelectionError: `what` selects nothing, or a single layer of a stack.

    Example:
        unrolled = replan(model, 3)
        replace(unrolled, "blocks.3.mlp", lambda mlp: MyMLP())
    """
    if isinstance(what, type):
        selection = select(model).at_instances_of(what)
        if selection.count() == 0:
            raise _no_part_of(what, model)
        return selection.apply(fn)
    places = _places(model, what)
    return select(model).at(lambda root: tuple(_walk(root, place) for place in places), multiple=True).apply(fn)


def replace_each(model: Layered, path: str, fn: Callable[..., Part], *values: PyTree) -> Layered:
    """The model with one part of every layer replaced by `fn(part, *values)`. It works in every layout of the blocks.

    Args:
      model: the model.
      path: the part of every block: `"blocks.*.attn.q"`.
      fn: takes the part of one layer and the values of this layer. For a stack it is called under `jax.vmap`.
      values: pytrees of arrays `[layer, ...]`: random keys, scales, new weights.

    Returns:
      A new model that shares all other arrays with `model`.

    Raises:
      SelectionError: the path selects nothing, or the leading axis of a value is not the number of layers.

    Example:
        replace_each(model, "blocks.*.attn.q", LoRA, jax.random.split(key, n_layers))
    """
    if not path.startswith("blocks.*."):
        raise SelectionError(
            f"{path!r}: replace_each changes a part of every block. The path starts with 'blocks.*.', as 'blocks.*.mlp'"
        )
    depth = depth_of(model.blocks)
    for leaf in jax.tree.leaves(values):
        if not jnp.ndim(leaf) or leaf.shape[0] != depth:
            raise SelectionError(
                f"{path!r}: values need a leading axis over the model's {depth} layers, got {jnp.shape(leaf)}"
            )
    for place, segment in zip(_places(model, path), list(iter_segments(model)), strict=True):
        rows = jax.tree.map(lambda leaf, s=segment: leaf[s.layers.start : s.layers.stop], values)
        change = lambda part, s=segment, rows=rows: dataclasses.replace(s, block=part).map(fn, *rows)
        model = select(model).at(lambda root, place=place: _walk(root, place)).apply(change)
    return model


def split(model: PyTree, what: type) -> tuple[PyTree, PyTree]:
    """Split the model into the parts of one class and the rest, as two pytrees. `join` puts them together again.

    Args:
      model: the model.
      what: the class of the parts.

    Returns:
      `(parts, rest)`. To train only the parts, differentiate with respect to `parts`.

    Raises:
      SelectionError: the model has no part of this class.

    Example:
        trained, rest = split(model, LowRank)
        grads = jax.grad(lambda trained: loss(join(trained, rest)))(trained)
    """
    selection = select(model).at_instances_of(what)
    if selection.count() == 0:
        raise _no_part_of(what, model)
    return selection.partition()


def join(*parts: PyTree) -> PyTree:
    """Put the pytrees that `split` returned together into a model again."""
    from penzai import pz

    return pz.combine(*parts)


def arrange(model: Layered, layers: Sequence[int]) -> Layered:
    """Reorder, repeat or drop blocks of a model.

    Args:
      model: a model with an attribute `blocks`. If its `config` is a `LayeredConfig`, the new config is
        `config.of_layers(layers)`, so that each block keeps its settings (its kind of attention, for example).
      layers: the blocks of `model` in their new order. Negative numbers count from the end.

    Returns:
      A copy of the model with copies of the blocks. Neighbouring blocks of the same structure are stacked.

    Raises:
      SelectionError: there is no such block, or `layers` is empty.

    Example:
        arrange(model, [0, 2, 1, 3])       # blocks 1 and 2 swapped
        arrange(model, [0, 1, 1, 2, 3])    # block 1 runs twice
    """
    depth = depth_of(model.blocks)
    for layer in layers:
        if not -depth <= layer < depth:
            raise SelectionError(f"there is no block {layer}: this model has blocks.0 to blocks.{depth - 1}")
    if not layers:
        raise SelectionError("arrange needs at least one layer, got an empty list")
    order = [layer % depth for layer in layers]
    blocks = dict(iter_blocks(model))
    arranged = with_blocks(model, [blocks[layer] for layer in order])
    config = getattr(model, "config", None)
    if isinstance(config, LayeredConfig):
        arranged.config = config.of_layers(order)  # type: ignore[attr-defined]
    return replan(arranged)


def skip_block(model: Layered, layer: int) -> Layered:
    """The model without one block. The numbers of later layers go down by one. Raises the errors of `arrange`."""
    depth = depth_of(model.blocks)
    if not -depth <= layer < depth:
        raise SelectionError(f"there is no block {layer} to skip: this model has blocks.0 to blocks.{depth - 1}")
    return arrange(model, [i for i in range(depth) if i != layer % depth])


def _no_part_of(what: type, model: PyTree) -> SelectionError:
    """The error for a class that no part of the model has."""
    seen: set[str] = set()

    def look(part: Part) -> bool:
        seen.add(type(part).__name__)
        return False

    jax.tree.leaves(model, is_leaf=look)
    seen -= {"ArrayImpl", "PytreeState"}  # JAX's and Flax's own
    near = difflib.get_close_matches(what.__name__, seen, n=2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return SelectionError(f"the model has no part of class {what.__name__}.{hint} It has {', '.join(sorted(seen))}.")


def _places(model: PyTree, path: str) -> list[tuple[str | int, ...]]:
    """The key paths in the pytree that `path` means, in the layout of this model."""
    head, *rest = path.split(".")
    places: list[tuple[str | int, ...]] = []
    if head != "blocks":
        places.append(tuple(path.split(".")))
    elif not rest:
        raise SelectionError("'blocks' alone selects nothing: write 'blocks.*' or 'blocks.3.mlp'")
    else:
        depth = depth_of(model.blocks)
        if not re.fullmatch(r"\*|-?\d+", rest[0]):
            raise SelectionError(f"{path!r}: a path names one layer ('blocks.3.mlp') or all of them ('blocks.*.mlp')")
        layer = None if rest[0] == "*" else int(rest[0])
        if layer is not None and not -depth <= layer < depth:
            raise SelectionError(f"{path!r} names no layer: this model has blocks.0 to blocks.{depth - 1}")
        for i, segment in enumerate(iter_segments(model)):
            if layer is not None and layer % depth not in segment.layers:
                continue
            if layer is not None and len(segment.layers) > 1:
                raise SelectionError(
                    f"{path!r} is stacked with layers {segment.layers[0]} to {segment.layers[-1]}: give it a block of "
                    f"its own with replan(model, unroll={rest[0]}), or select 'blocks.*' to change all layers"
                )
            places.append(("blocks", i, *(["block"] if segment.stacked else []), *rest[1:]))
    for place in places:
        _walk(model, place, path)
    return places


def _walk(node: Part, place: tuple[str | int, ...], path: str = "") -> Part:
    for part in place:
        try:
            node = node[part] if isinstance(part, int) else getattr(node, part)
        except (AttributeError, IndexError, KeyError):
            have = [name for name in vars(node) if not name.startswith("_")] if hasattr(node, "__dict__") else []
            near = difflib.get_close_matches(str(part), have, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise SelectionError(
                f"{path!r}: {type(node).__name__} has no part {part!r}.{hint} It has {', '.join(have) or 'none'}."
            ) from None
    return node
