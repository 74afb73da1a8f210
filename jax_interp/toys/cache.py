"""Trained toys on disk: one safetensors file for each config and seed, read instead of trained again.

The folder is `JAX_INTERP_CACHE` where that is set, otherwise `jax_interp/toys` in the user's cache folder. A file's
name contains a hash of the request; its header has the config as JSON and a fingerprint of every array. A file that is
damaged, or holds another config than its name says, is refused by name. Deleting a file is always safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp

from jax_interp.core.config_json import to_json, upgrade
from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten, unflatten
from jax_interp.core.tensor_files import TensorFileError, read_header, read_tensors, write_tensors
from jax_interp.core.user_cache import user_cache
from jax_interp.training.fingerprint import fingerprints

T = TypeVar("T")
VARIABLE = "JAX_INTERP_CACHE"
TRAINING_VERSION = 1
"""Increased when the training code gives another result for a config, so that older files are not found any more."""


class CacheError(UserError):
    """A file of the cache is damaged, or does not hold what its name says."""


def cache_directory() -> Path:
    """The folder of trained toys."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    return user_cache() / "toys"


def cached(kind: str, config: Any, seed: int, template: T, make: Callable[[], T]) -> T:
    """The pytree for a config and a seed: read where it was made before, otherwise made and written.

    Of two processes that ask at once, one makes it, and the other waits and reads.

    Args:
      kind: the first part of the file's name.
      config: a dataclass that decides the result.
      seed: decides the result too.
      template: the structure, shapes and dtypes: `jax.eval_shape` of what makes the pytree.
      make: makes it.

    Returns:
      The pytree.

    Raises:
      CacheError: the file is damaged, or does not hold this config or such arrays.
    """
    asked = {"kind": kind, "recipes": TRAINING_VERSION, "seed": seed, "config": to_json(config)}
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_directory() / f"{kind}-{name}.safetensors"
    if path.is_file() or (path := _earlier_file(path, asked)).is_file():
        return _read(path, asked, template)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            _write(path, asked, make())
    return _read(path, asked, template)


def _earlier_file(path: Path, asked: dict[str, Any]) -> Path:
    """The file that an earlier version wrote of the same config under other field names; `path` if there is none."""
    for other in path.parent.glob(f"{asked['kind']}-*.safetensors"):
        with contextlib.suppress(TensorFileError, json.JSONDecodeError):
            if upgrade(json.loads(read_header(other).get("asked", "null"))) == asked:
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
        says, marks = (json.loads(file.header.get(name, "null")) for name in ("asked", "fingerprints"))
    except (TensorFileError, json.JSONDecodeError) as error:
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
