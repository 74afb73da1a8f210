"""Select matrices of a model by patterns. A matrix is a part with a two-dimensional `weight`.

An *entry* is the name under which a matrix is decomposed:

    blocks.*.mlp.up           one entry for all blocks: its arrays have a layer axis, for scanned and unrolled blocks
    blocks.3.attn.q           a matrix of one block; this block must be unrolled
    linear1, hidden_layers.0  a matrix outside the blocks

A pattern is an address with globs in its parts (`blocks.*.attn.?`, `*`, `linear*`). A pattern that ends before a matrix
selects all matrices below it (`blocks.*.mlp`).
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import addresses
from jax_interp.core.processes import to_host
from jax_interp.surgery import blocks_as_pytree, depth_of, get_block, iter_segments
from jax_interp.surgery.contract import Model


def matrices(model: Model) -> dict[str, tuple[int, ...]]:
    """The shape `[d_in, d_out]` of every matrix, by its address (`blocks.3.mlp.up`)."""
    return {address: shape for address, shape in _weights(model).items() if len(shape) == 2}


def _weights(model: Model) -> dict[str, tuple[int, ...]]:
    """The shape of every `weight`, by the address of its part, one address for each layer."""
    found: dict[str, tuple[int, ...]] = {}
    leaves = zip(addresses(model), jax.tree.leaves(model), strict=True)
    segments = list(iter_segments(model))
    for address, leaf in leaves:
        *part, last = address.split(".")
        if last != "weight" or not hasattr(leaf, "shape"):
            continue
        if part[:1] == ["blocks"] and len(part) > 2 and segments:
            segment = segments[int(part[1])]
            if segment.stacked:
                for layer in segment.layers if part[2] == "block" else ():
                    found[".".join(["blocks", str(layer), *part[3:]])] = leaf.shape[1:]
                continue
            part[1] = str(segment.layers.start)
        if part:
            found[".".join(part)] = leaf.shape
    return dict(sorted(found.items(), key=lambda item: address_order(item[0])))


def select_matrices(model: Model, patterns: str | Sequence[str]) -> list[str]:
    """The entries that the patterns select, in the order of the model.

    Args:
      model: any model that keeps the surgery contract.
      patterns: one pattern, or several.

    Returns:
      Entries. There is one entry `blocks.*.mlp.up` if all blocks are selected and their matrices have the same shape;
      otherwise there is one entry for each block.

    Raises:
      UserError: a pattern selects nothing.
    """
    have = matrices(model)
    wanted: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = [address for address in have if _matches(pattern, address)]
        if not matched:
            raise UserError(_no_match(model, pattern, have))
        wanted += [address for address in matched if address not in wanted]
    depth = depth_of(model)
    entries: list[str] = []
    for address in sorted(wanted, key=list(have).index):
        head, *rest = address.split(".")
        if head != "blocks" or len(rest) < 2:
            entries.append(address)
            continue
        name = ".".join(rest[1:])
        layers = [f"blocks.{layer}.{name}" for layer in range(depth)]
        whole = all(layer in wanted for layer in layers) and len({have[layer] for layer in layers}) == 1
        entry = f"blocks.*.{name}" if whole else address
        if entry not in entries:
            entries.append(entry)
    return entries


def _no_match(model: Model, pattern: str, have: Iterable[str]) -> str:
    """The message for a pattern that selects nothing."""
    names = _short(have)
    other = {address: shape for address, shape in _weights(model).items() if _matches(pattern, address)}
    if other:
        address, shape = next(iter(other.items()))
        return (
            f"{pattern!r} selects no matrix: the weight of {address!r} has the shape {shape}, and only a weight with "
            f"two axes is decomposed (no norm, no experts of a mixture). This model has {', '.join(names) or 'none'}"
        )
    near = difflib.get_close_matches(pattern, names, 1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no matrix matches {pattern!r}.{hint} This model has {', '.join(names) or 'none'}"


def is_stacked(name: str) -> bool:
    """Whether an entry stands for all layers. Its arrays then have a leading layer axis."""
    return name.startswith("blocks.*.")


def row_axes(name: str, values: Array | jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The row axes of an entry's values `[*layer, *rows, last]`."""
    return tuple(range(1 if is_stacked(name) else 0, values.ndim - 1))


def layer_address(name: str, layer: int | None) -> str:
    """The address of one layer of a stacked entry (`blocks.2.mlp.up`). With None it is the entry itself."""
    return name if layer is None else name.replace("*", str(layer), 1)


def addresses_of(model: Model, name: str) -> list[str]:
    """The address of the part of an entry, or of its parts in all layers."""
    return [layer_address(name, layer) for layer in (range(depth_of(model)) if is_stacked(name) else [None])]


def weight_of(model: Model, name: str) -> Array:
    """The target's weight of an entry: `[d_in, d_out]`, or `[layer, d_in, d_out]`."""
    if not is_stacked(name):
        return part_of(model, name).weight[...]
    return blocks_as_pytree(model, lambda block: _walk(block, name.split(".")[2:]).weight[...])


def check_tied(model: Model, tied: Sequence[tuple[str, str]]) -> None:
    """Check that the matrices of every pair (name, twin) are transposes of each other.

    Values are compared bit by bit. Only shapes are compared inside `jax.jit`, and if other processes hold some of the
    values. A twin that has no matrix and uses the other part's matrix passes.

    Raises:
      UserError: a twin is not a part of the model, or its matrix is not the transpose of the other matrix.
    """
    for one, twin in tied:
        for name in (one, twin):
            try:
                part = part_of(model, name.replace("blocks.*.", "blocks.0.", 1))
                if name == one:
                    part.weight.ndim  # noqa: B018  the first of a pair has a matrix
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                have = ", ".join(_short(matrices(model)))
                raise UserError(
                    f"tied=({one!r}, {twin!r}): this model has no {name!r}; its matrices are {have}"
                ) from error
        if getattr(part, "weight", None) is None:
            continue
        weight, own = jnp.swapaxes(weight_of(model, one), -1, -2), weight_of(model, twin)
        same = weight.shape == own.shape
        if same and all(_is_here(w) for w in (weight, own)):
            same = np.array_equal(to_host(weight), to_host(own))
        if not same:
            raise UserError(
                f"tied=({one!r}, {twin!r}): the matrix of {twin!r} is not the transpose of {one!r}'s; leave it out of "
                "tied=, and decompose it by itself"
            )


def _is_here(weight: Array) -> bool:
    return not isinstance(weight, jax.core.Tracer) and getattr(weight, "is_fully_addressable", True)


def part_of(model: Model, name: str) -> Any:
    """The part at an address (`linear1`, `blocks.3.mlp.up`)."""
    path = name.split(".")
    if path[0] != "blocks":
        return _walk(model, path)
    return _walk(get_block(model, int(path[1])), path[2:])


def _walk(node: Any, path: Sequence[str]) -> Any:
    for part in path:
        node = node[int(part)] if part.isdigit() and not hasattr(node, part) else getattr(node, part)
    return node


def _matches(pattern: str, address: str) -> bool:
    wanted, parts = pattern.split("."), address.split(".")
    if pattern == "*":
        return True
    return len(wanted) <= len(parts) and all(fnmatch.fnmatchcase(part, want) for part, want in zip(parts, wanted))


def address_order(address: str) -> tuple:
    """A sort key for addresses. Numbers in them are compared as numbers."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in address.split("."))


def _short(have: Iterable[str]) -> list[str]:
    """The addresses without layer numbers, each once."""
    names = (a if a.split(".")[0] != "blocks" else ".".join(["blocks", "*", *a.split(".")[2:]]) for a in have)
    return list(dict.fromkeys(names))
