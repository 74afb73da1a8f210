"""The tokens of texts, kept in the user's cache folder, so that a text is encoded once.

A file's name is the digest of the text and of the tokenizer. Files that are older than 30 days are removed. You can
delete them at any time. With `JAX_INTERP_TOKEN_CACHE` set to an empty value there is no cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.tensor_files import read_tensors, write_tensors
from jax_interp.core.user_cache import DAYS_KEPT, user_cache

VARIABLE = "JAX_INTERP_TOKEN_CACHE"
SMALLEST = 1 << 20
"""Characters of text from which on the tokens are kept: smaller texts are encoded in a moment."""


def token_cache() -> Path | None:
    """The folder of the tokens: `tokens/` in the user's cache, or the value of the variable. None: no cache."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE]).expanduser() if os.environ[VARIABLE] else None
    return user_cache() / "tokens"


def cached_arrays(parts: Sequence[str], make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that belong to some strings: read from the cache, or made and written to it.

    Args:
      parts: the strings that decide the result.
      make: a function that computes the arrays. It is also called where the file is damaged or cannot be written.
    """
    folder = token_cache()
    if folder is None or sum(map(len, parts)) < SMALLEST:
        return make()
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    file = folder / f"{digest.hexdigest()}.safetensors"
    if file.exists():
        with contextlib.suppress(UserError):
            return read_tensors(file).arrays
    arrays = make()
    with contextlib.suppress(UserError, OSError):
        write_tensors(file, arrays)
        _remove_old(folder)
    return arrays


def _remove_old(folder: Path) -> None:
    oldest = time.time() - DAYS_KEPT * 24 * 3600
    for file in folder.glob("*.safetensors"):
        if file.stat().st_mtime < oldest:
            file.unlink()
