"""Fitted probes on disk: one `safetensors` file, with the kind, the axes and the structure as JSON in its header.

The file contains no pickle and no code. It names classes, and `load_probes` makes instances of registered classes only:
probes, kinds, and the variants that their fields accept. A class of your own is known once its file is imported.
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.config_json import from_json, to_json
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json
from jax_interp.core.registry import registry_of
from jax_interp.core.tensor_files import read_tensors, write_tensors
from jax_interp.probes.fit import AXES, FittedProbes
from jax_interp.probes.kind import KINDS, Kind
from jax_interp.probes.probe import PROBES, Probe

_FORMAT = 1


class ProbeFileError(UserError):
    """Probes cannot be written, or a file does not hold probes."""


def save_probes(path: str | os.PathLike, fitted: FittedProbes) -> Path:
    """Write fitted probes to one file. The file appears whole or not at all.

    Args:
      path: the file.
      fitted: the probes, of a registered kind.

    Returns:
      The path of the file.

    Raises:
      ProbeFileError: the kind or the probe is not registered, a label of an axis is no number or string, or the file
        cannot be written.

    Example:
        save_probes("truth.safetensors", fitted.sel(strength=1.0))
        fitted = load_probes("truth.safetensors")
    """
    if type(fitted.kind) not in KINDS:
        raise ProbeFileError(f"the kind {type(fitted.kind).__name__} is not registered: decorate it, @KINDS.register")
    arrays: dict[str, jax.Array] = {}
    try:
        header = {
            "format": _FORMAT,
            "kind": to_json(fitted.kind),
            "axes": {name: to_json(_plain(fitted.axes[name])) for name in AXES},
            "classes": list(fitted.classes),
            "probes": _encoded(fitted.probes, "probe", arrays),
        }
        return write_tensors(Path(path), arrays, {"probes": json.dumps(header)})
    except UserError as error:
        raise ProbeFileError(f"the probes are not saved: {error}") from error


def load_probes(path: str | os.PathLike) -> FittedProbes:
    """Read the probes that `save_probes` has written, bit for bit.

    Args:
      path: the file.

    Raises:
      ProbeFileError: the file does not exist, is damaged, contains no probes, or contains a class that is not
        registered.
    """
    try:
        file = read_tensors(Path(path))
        header = parse_json(file.header.get("probes", "null"), f"the header of {path}")
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise UserError(f"{str(path)!r} holds no probes that this version reads (format {_FORMAT})")
        fitted = _read(header, {name: jnp.asarray(array) for name, array in file.arrays.items()}, str(path))
    except UserError as error:
        raise ProbeFileError(f"cannot load probes: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise ProbeFileError(f"{str(path)!r} does not hold what its header promises: {error!r}") from error
    return fitted


def _read(header: dict[str, Any], arrays: dict[str, jax.Array], path: str) -> FittedProbes:
    unknown = sorted(set(header) ^ {"format", "kind", "axes", "classes", "probes"})
    if unknown:
        raise UserError(f"{path}: the header has the wrong entries ({', '.join(map(repr, unknown))})")
    kind = from_json(Kind, header["kind"], "kind")
    axes = {name: from_json(_AXIS_TYPES[name], labels, f"the axis {name}") for name, labels in header["axes"].items()}
    if tuple(axes) != AXES:
        raise UserError(f"{path}: the axes are {', '.join(axes)}, and not {', '.join(AXES)}")
    classes = from_json(tuple[str, ...], header["classes"], "classes")
    probes = _decoded(header["probes"], Probe, arrays)
    sizes = tuple(map(len, axes.values()))
    for leaf in jax.tree.leaves(probes):
        if jnp.shape(leaf)[: len(AXES)] != sizes:
            raise UserError(f"{path}: an array of shape {jnp.shape(leaf)} does not begin with the axes {sizes}")
    again: dict[str, jax.Array] = {}
    if _encoded(probes, "probe", again) != header["probes"] or again.keys() != arrays.keys():
        raise UserError(f"{path}: save_probes would write it otherwise")
    return FittedProbes(kind, probes, axes, classes)


_LABEL = str | int | float | None
_AXIS_TYPES = dict.fromkeys(AXES, tuple[_LABEL, ...]) | {"site": tuple[str, ...], "rule": tuple[str, ...]}


def _plain(labels: tuple[Any, ...]) -> list[Any]:
    """Labels without NumPy types."""
    return [label.item() if isinstance(label, np.generic) else label for label in labels]


def _encoded(node: Any, path: str, arrays: dict[str, jax.Array]) -> Any:
    """JSON values that describe a part of a probe. Its arrays go into `arrays`."""
    if isinstance(node, (jax.Array, np.ndarray)):
        arrays[path] = jnp.asarray(node)
        return {"array": path}
    if _holds_arrays(node):
        if isinstance(node, (list, tuple)):
            return {type(node).__name__: [_encoded(part, f"{path}.{i}", arrays) for i, part in enumerate(node)]}
        if isinstance(node, dict):
            return {"dict": {str(name): _encoded(part, f"{path}.{name}", arrays) for name, part in node.items()}}
        if dataclasses.is_dataclass(node):
            parts = {f.name: _encoded(getattr(node, f.name), f"{path}.{f.name}", arrays) for f in _fields(node)}
            return {"type": type(node).__name__, "fields": parts}
        raise UserError(f"{type(node).__name__} at {path} holds arrays and is no dataclass, list or dict")
    return {"config": to_json(node)}


def _holds_arrays(node: Any) -> bool:
    return isinstance(node, Probe) or any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(node))


def _fields(node: Any) -> Iterator[dataclasses.Field]:
    return (f for f in dataclasses.fields(node) if f.init)


def _decoded(node: Any, kind: Any, arrays: dict[str, jax.Array]) -> Any:
    """The part of a probe that JSON values describe.

    Args:
      node: the values.
      kind: the type of the field that holds the part.
      arrays: the arrays of the file.
    """
    match node:
        case {"array": str(name)} if len(node) == 1:
            return arrays[name]
        case {"config": value} if len(node) == 1:
            return from_json(kind, value, "a probe's setting")
        case {"tuple": list(parts)} if len(node) == 1:
            return tuple(_decoded(part, _part_of(kind, i), arrays) for i, part in enumerate(parts))
        case {"list": list(parts)} if len(node) == 1:
            return [_decoded(part, _part_of(kind, 0), arrays) for part in parts]
        case {"dict": dict(parts)} if len(node) == 1:
            return {name: _decoded(part, _part_of(kind, -1), arrays) for name, part in parts.items()}
        case {"type": str(name), "fields": dict(parts)} if len(node) == 2:
            made = _class_of(name, kind)
            hints = typing.get_type_hints(made, include_extras=True)
            if missing := [f.name for f in dataclasses.fields(made) if f.init and f.name not in parts]:
                raise UserError(f"{name} lacks {', '.join(missing)}")
            return made(**{field: _decoded(part, hints[field], arrays) for field, part in parts.items()})
    raise UserError(f"an entry of the header cannot be read: {node!r:.80}")


def _class_of(name: str, kind: Any) -> type:
    """The class of this name: a registered probe or variant that a field of type `kind` accepts, or `kind` itself."""
    choices = [kind, *typing.get_args(kind)]
    for choice in choices:
        if isinstance(choice, type) and dataclasses.is_dataclass(choice) and choice.__name__ == name:
            return choice
    registries = [registry for choice in choices if (registry := registry_of(choice)) is not None]
    for registry in registries or [PROBES]:
        if name in registry.names():
            return registry[name]
    known = [n for registry in registries or [PROBES] for n in registry.names()]
    raise UserError(f"the file holds a {name!r}, which is not registered; there are {', '.join(known)}")


def _part_of(kind: Any, index: int) -> Any:
    """The type of an entry of a tuple, list or dict."""
    arguments = [argument for argument in typing.get_args(kind) if argument is not Ellipsis]
    if not arguments:
        return Any
    return arguments[index] if index < len(arguments) else arguments[-1]
