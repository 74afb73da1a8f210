"""Edits on disk: one `safetensors` file, with the structure as JSON in its header.

The file contains no pickle and no code. It names the classes of its edits. `load_edits` makes instances of known
classes only: the built-in edits, and the dataclasses given as `types=`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json
from jax_interp.core.tensor_files import read_tensors, write_tensors
from jax_interp.surgery.edits import EDITS
from jax_interp.surgery.region import Region, Span
from jax_interp.surgery.taps import Each, Edit
from jax_interp.surgery.verbs import flat_edits

_FORMAT = 1
_KNOWN = (Edit, Each, Region, Span, *EDITS)


class SavingError(UserError):
    """Edits cannot be written, or a file does not hold edits."""


def save_edits(path: str | os.PathLike, *edits: Edit | Iterable) -> Path:
    """Write edits to one file. The file appears whole or not at all.

    Args:
      path: the file.
      edits: edits made by `at`, or nested lists of edits. Their callables must be frozen dataclasses of arrays, like
        the built-in edits.

    Returns:
      The path of the file.

    Raises:
      SavingError: an edit contains something that cannot be saved (a function, for example), or the file cannot be
        written.

    Example:
        save_edits("ablation.safetensors", at("blocks.1.attn.z", Zero(), head=3))
        edit(model, load_edits("ablation.safetensors"))
    """
    arrays: dict[str, jax.Array] = {}
    structure = [_encode(item, f"{i}", arrays) for i, item in enumerate(flat_edits(edits))]
    header = {"surgery": json.dumps({"format": _FORMAT, "edits": structure})}
    try:
        return write_tensors(Path(path), arrays, header)
    except UserError as error:
        raise SavingError(f"the edits are not saved: {error}") from error


def load_edits(path: str | os.PathLike, types: Iterable[type] = ()) -> tuple[Edit, ...]:
    """Read edits that `save_edits` has written, bit for bit.

    Args:
      path: the file.
      types: further dataclasses that the file may contain, besides the built-in edits.

    Returns:
      The edits, for `edit`.

    Raises:
      SavingError: the file does not exist, is damaged, contains no edits, or contains a class that is not known.
    """
    try:
        file = read_tensors(Path(path))
        header = parse_json(file.header.get("surgery", "null"), f"the header of {path}")
    except UserError as error:
        raise SavingError(f"cannot load edits: {error}") from error
    arrays = {name: jnp.asarray(array) for name, array in file.arrays.items()}
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise SavingError(f"{str(path)!r} holds no edits that this version reads (format {_FORMAT}); save_edits does")
    known = {kind.__name__: kind for kind in (*_KNOWN, *types)}
    promise = f"{str(path)!r} does not hold what its header promises"
    try:
        edits = tuple(_decode(entry, arrays, known) for entry in header["edits"])
    except SavingError:
        raise
    except Exception as error:  # a class was given fields that it does not take
        raise SavingError(f"{promise}: {error!r}") from error
    for i, item in enumerate(edits):
        if not (isinstance(item, Edit) and isinstance(item.region, Region) and isinstance(item.address, str)):
            raise SavingError(f"{promise}: entry {i} is no edit of a region")
    again: dict[str, jax.Array] = {}
    structure = [_encode(item, f"{i}", again) for i, item in enumerate(edits)]
    if structure != header["edits"] or again.keys() != arrays.keys():
        raise SavingError(f"{promise}: save_edits would write it otherwise")
    return edits


def _encode(node: Any, path: str, arrays: dict[str, jax.Array]) -> Any:
    if node is None or isinstance(node, str):
        return node
    if isinstance(node, (bool, int, float)):
        return {"value": node}
    if isinstance(node, (jax.Array, np.ndarray, np.generic)):
        if jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
            arrays[path] = jax.random.key_data(node)  # type: ignore[arg-type]
            return {"key": path, "impl": str(jax.random.key_impl(node))}  # type: ignore[arg-type]
        arrays[path] = jnp.asarray(node)
        return {"array": path}
    if isinstance(node, (list, tuple)):
        kind = "list" if isinstance(node, list) else "tuple"
        return {kind: [_encode(child, f"{path}.{i}", arrays) for i, child in enumerate(node)]}
    if isinstance(node, dict):
        return {"dict": {str(key): _encode(child, f"{path}.{key}", arrays) for key, child in node.items()}}
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        fields = {f.name: _encode(getattr(node, f.name), f"{path}.{f.name}", arrays) for f in dataclasses.fields(node)}
        return {"type": type(node).__name__, "fields": fields}
    if isinstance(node, jax.tree_util.Partial):
        node = node.func  # the plain function that the user gave to `at`
    raise SavingError(
        f"cannot save {type(node).__name__} ({node!r:.80}): an edit can be saved if it consists of frozen dataclasses "
        "and arrays, like the edits in jax_interp.surgery"
    )


def _decode(node: Any, arrays: dict[str, jax.Array], known: dict[str, type]) -> Any:
    if node is None or isinstance(node, str):
        return node
    match node:
        case {"value": value}:
            return value
        case {"array": name}:
            return arrays[name]
        case {"key": name, "impl": impl}:
            return jax.random.wrap_key_data(arrays[name], impl=impl)
        case {"list": children}:
            return [_decode(child, arrays, known) for child in children]
        case {"tuple": children}:
            return tuple(_decode(child, arrays, known) for child in children)
        case {"dict": children}:
            return {key: _decode(child, arrays, known) for key, child in children.items()}
        case {"type": name, "fields": fields} if name in known:
            return known[name](**{key: _decode(child, arrays, known) for key, child in fields.items()})
        case {"type": name}:
            raise SavingError(
                f"the file holds a {name!r}, which is not among the known kinds ({', '.join(sorted(known))}): "
                f"pass its class, load_edits(path, types=[{name}])"
            )
    raise KeyError(f"unreadable entry {node!r:.80}")
