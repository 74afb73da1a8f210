"""Trained toys on disk: one safetensors file for each config and seed, so that a toy is trained only once.

The folder is `JAX_INTERP_CACHE` if this variable is set, otherwise `jax_interp/toys` in the user's cache folder. The
name of a file contains a hash of the config and the seed. The header has the config as JSON and a fingerprint of every
array. If a file is damaged or holds another config, reading it is an error. You can delete files at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp

from jax_interp.core.config_json import to_json, upgrade
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json
from jax_interp.core.leaves import flatten, unflatten
from jax_interp.core.locks import locked
from jax_interp.core.tensor_files import read_header, read_tensors, write_tensors
from jax_interp.core.user_cache import user_cache
from jax_interp.training.fingerprint import fingerprints

T = TypeVar("T")
VARIABLE = "JAX_INTERP_CACHE"
TRAINING_VERSION = 1
"""Increase this when the training code gives another result for the same config. Older files are then not found."""


class CacheError(UserError):
    """A file of the cache is damaged, or holds another config than its name says."""


def cache_directory() -> Path:
    """The folder of trained toys."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    return user_cache() / "toys"


def cached(kind: str, config: Any, seed: int, template: T, make: Callable[[], T]) -> T:
    """The pytree for a config and a seed. It is read from the cache, or made and written to the cache.

    If two processes ask at the same time, one makes the pytree, and the other waits and reads it.

    Args:
      kind: the first part of the file's name.
      config: a dataclass. Config and seed must determine the result.
      seed: the seed.
      template: the structure, shapes and dtypes of the pytree, as `jax.eval_shape` returns them.
      make: a function that makes the pytree.

    Returns:
      The pytree.

    Raises:
      CacheError: the file is damaged, or holds another config or other arrays.
    """
    asked = {"kind": kind, "recipes": TRAINING_VERSION, "seed": seed, "config": to_json(config)}
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_directory() / f"{kind}-{name}.safetensors"
    if path.is_file() or (path := _earlier_file(path, asked)).is_file():
        return _read(path, asked, template)
    with locked(path.with_suffix(".lock"), f"the cached toy {path}", wait=True):
        if not path.is_file():
            _write(path, asked, make())
    return _read(path, asked, template)


def _earlier_file(path: Path, asked: dict[str, Any]) -> Path:
    """The file that an earlier version wrote for the same config with other field names; `path` if there is none."""
    for other in path.parent.glob(f"{asked['kind']}-*.safetensors"):
        with contextlib.suppress(UserError):
            if upgrade(parse_json(read_header(other).get("asked", "null"), str(other))) == asked:
                return other
    return path


def _write(path: Path, asked: dict[str, Any], tree: Any) -> None:
    header = {"asked": json.dumps(asked), "fingerprints": json.dumps(fingerprints(tree))}
    write_tensors(path, flatten(tree), header)


def _read(path: Path, asked: dict[str, Any], template: T) -> T:
    def refuse(why: str) -> CacheError:
        return CacheError(f"the cached toy {str(path)!r} {why}: delete it and it is trained again")

    try:
        file = read_tensors(path)
        says, marks = (parse_json(file.header.get(name, "null"), name) for name in ("asked", "fingerprints"))
    except UserError as error:
        raise refuse(f"is damaged ({error})") from error
    if upgrade(says) != asked:
        raise refuse("holds another config than its name says")
    want, flat = flatten(template), {name: jnp.asarray(array) for name, array in file.arrays.items()}
    if {name: (x.shape, x.dtype) for name, x in want.items()} != {name: (x.shape, x.dtype) for name, x in flat.items()}:
        raise refuse("does not have the arrays of this model")
    tree = unflatten(template, flat)
    if fingerprints(tree) != marks:
        raise refuse("is damaged (its arrays are not those that were written)")
    return tree
