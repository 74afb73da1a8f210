"""Model surgery: find and replace parts of a model. The one place where penzai is used.

A Flax NNX module is a pytree, so penzai's `pz.select` works on it as it is. The recipes here are the common ones; for
anything else, `select(model)` is penzai's own selection (`.at_instances_of(cls)`, `.where(...)`, `.apply`, `.set`).

In a model whose blocks are stacked, a part of the stacked block is that part in all its layers at once (its arrays
carry a leading layer axis); `replan(model, unroll=...)` gives a layer a block of its own first.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from jax_interp.errors import UserError
from jax_interp.surgery.stack import Stack, depth_of


class SelectionError(UserError, LookupError):
    """A path or a class that selects nothing in the model."""


def select(model: Any) -> Any:
    """penzai's selection over a model: `select(model).at_instances_of(MLP).apply(fn)`."""
    from penzai import pz

    return pz.select(model)


def replace(model: Any, what: type | str, fn: Callable[[Any], Any]) -> Any:
    """The model with each part selected by `what` replaced by `fn(part)`; the model itself is unchanged.

    `what` is a class (all instances: `replace(model, MLP, fn)`) or a path (`"blocks.3.mlp"`, `"blocks.*.attn.q"`,
    `"unembed"`). A path to one layer needs that layer unrolled; `blocks.*` reaches stacked and unrolled blocks alike.
    `fn` of a stacked part gets arrays with a leading layer axis: `jax.vmap(fn)` treats each layer on its own.
    """
    if isinstance(what, type):
        selection = select(model).at_instances_of(what)
        if selection.count() == 0:
            raise SelectionError(
                f"the model has no part of class {what.__name__}; `jax.tree_util` or treescope show it"
            )
        return selection.apply(fn)
    places = _places(model, what)
    return select(model).at(lambda root: tuple(_walk(root, place) for place in places), multiple=True).apply(fn)


def skip_block(model: Any, layer: int) -> Any:
    """The model without block `layer`: later layers move down by one."""
    from jax_interp.surgery.stack import replan

    apart = replan(model, "*")
    depth = depth_of(apart.blocks)
    if not -depth <= layer < depth:
        raise SelectionError(f"there is no block {layer} to skip: this model has blocks.0 to blocks.{depth - 1}")
    kept = [block for i, block in enumerate(apart.blocks) if i != layer % depth]
    apart.blocks = type(model.blocks)(kept)
    return replan(apart)


def _places(model: Any, path: str) -> list[tuple[str | int, ...]]:
    """The concrete places that a path means, through the segments that a model's blocks are laid out in."""
    head, *rest = path.split(".")
    places: list[tuple[str | int, ...]] = []
    if head != "blocks":
        places.append(tuple(path.split(".")))
    elif not rest:
        raise SelectionError("'blocks' alone selects nothing: write 'blocks.*' or 'blocks.3.mlp'")
    else:
        first = 0
        for i, segment in enumerate(model.blocks):
            depth = segment.depth if isinstance(segment, Stack) else 1
            inside = ("blocks", i, "block") if isinstance(segment, Stack) else ("blocks", i)
            if rest[0] == "*":
                places.append((*inside, *rest[1:]))
            elif first <= int(rest[0]) % depth_of(model.blocks) < first + depth:
                if isinstance(segment, Stack) and depth > 1:
                    raise SelectionError(
                        f"{path!r} is stacked with layers {first} to {first + depth - 1}: give it a block of its own "
                        f"with replan(model, unroll={rest[0]}), or select 'blocks.*' to change all layers"
                    )
                places.append((*inside, *rest[1:]))
            first += depth
    for place in places:
        _walk(model, place, path)
    return places


def _walk(node: Any, place: tuple[str | int, ...], path: str = "") -> Any:
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
