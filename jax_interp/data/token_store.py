"""Token stores on disk: one flat array of tokens for each split of a corpus, and a JSON manifest.

Every document starts with BOS. The arrays are memory-mapped when they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from jax_interp.core.array_files import array_sha256, check_array, open_array, write_arrays
from jax_interp.core.config_json import from_json
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import is_file_name, read_json, write_json
from jax_interp.core.local_paths import check_local
from jax_interp.core.locks import locked

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SplitEntry:
    """What the manifest says about one split."""

    tokens: int
    dtype: Literal["uint16", "int32", "uint8", "int8", "int16", "uint32", "int64", "uint64"]
    sha256: str

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise UserError(f"a split has {self.tokens} tokens")


@dataclass(frozen=True)
class TokenManifest:
    """The content of `manifest.json`."""

    bos_id: int
    splits: dict[str, SplitEntry]
    about: dict[str, Any]
    """A description of the corpus."""
    format: int = 1

    def __post_init__(self) -> None:
        if self.format != 1 or self.bos_id < 0:
            raise UserError(f"format {self.format} and bos_id {self.bos_id}: this version reads format 1, ids from 0")
        if odd := [name for name in self.splits if not is_file_name(name)]:
            raise UserError(f"{odd[0]!r} cannot be the name of a split: it names a file")


@dataclass(frozen=True)
class TokenStore:
    """The tokens of one split: concatenated documents, each with BOS first."""

    tokens: Int[Array, " n"]
    """A flat array, usually memory-mapped."""
    bos_id: int
    manifest: TokenManifest

    @property
    def starts(self) -> Int[Array, " documents"]:
        """Positions at which documents start."""
        return np.flatnonzero(self.tokens == self.bos_id)

    def documents(self) -> list[Int[Array, " length"]]:
        """The documents, each with its BOS, as views of `tokens`."""
        return np.split(self.tokens, self.starts[1:])


def pack(documents: Iterable[Iterable[int]], *, vocab_size: int) -> Int[Array, " n"]:
    """Concatenate documents of token ids.

    Args:
      documents: the ids of each document, including BOS.
      vocab_size: the size of the vocabulary.

    Returns:
      One flat array: uint16 if the vocabulary fits, otherwise int32.

    Raises:
      UserError: an id is outside the vocabulary.
    """
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.int32
    parts = [np.asarray(document, dtype=np.int64) for document in documents]
    flat = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if flat.size and (flat.min() < 0 or flat.max() >= vocab_size):
        raise UserError(f"token ids run from {flat.min()} to {flat.max()}, outside a vocabulary of {vocab_size}")
    return flat.astype(dtype)


def write_token_store(
    directory: str | Path,
    splits: Mapping[str, Int[Array, " n"]],
    *,
    bos_id: int,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write each split as `<name>.npy`, and then a manifest with the lengths, dtypes and SHA-256 of the splits.

    An earlier store in the directory is replaced. The manifest is written last: if a crash replaces only some of the
    files, `open_token_store` detects it.

    Args:
      directory: the directory of the store. It is created if it is missing.
      splits: the tokens of each split, by name, as `pack` returns them.
      bos_id: the id of BOS.
      about: JSON values that describe the corpus. They are written to the manifest.

    Raises:
      UserError: the name of a split is no file name, its tokens are no integers, a file cannot be written, or another
        process writes this store.

    Example:
        write_token_store("tokens", {"train": pack(ids, vocab_size=2048)}, bos_id=0)
        store = open_token_store("tokens", "train")
    """
    directory = Path(directory)
    entries = {name: SplitEntry(int(a.size), _dtype(name, a), array_sha256(a)) for name, a in splits.items()}
    manifest = TokenManifest(int(bos_id), entries, dict(about or {}))
    with locked(directory / ".lock", f"the token store {directory}"):
        write_arrays(directory, splits)
        values = vars(manifest) | {"splits": {name: vars(entry) for name, entry in entries.items()}}
        write_json(directory / MANIFEST, values)


def read_manifest(directory: str | Path) -> TokenManifest | None:
    """The manifest of the store in `directory`; None if there is none. Raises UserError if it is damaged."""
    check_local(directory)
    path = Path(directory) / MANIFEST
    return from_json(TokenManifest, read_json(path), str(path)) if path.is_file() else None


def open_token_store(directory: str | Path, split: str, *, verify: bool = True) -> TokenStore:
    """Memory-map one split of a token store.

    Args:
      directory: the directory of the store.
      split: the name of the split.
      verify: read the tokens once and compare their SHA-256 with the manifest.

    Raises:
      UserError: the store is not complete, it has no such split, or a file does not match the manifest.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if manifest is None:
        raise UserError(f"no token store in {directory}: there is no {MANIFEST}; write one with write_token_store")
    if split not in manifest.splits:
        raise UserError(f"{directory} has no split {split!r}, it has {sorted(manifest.splits)}")
    entry, path = manifest.splits[split], directory / f"{split}.npy"
    tokens = open_array(path, (entry.tokens,), entry.dtype)
    if verify:
        check_array(path, tokens, entry.sha256)
    return TokenStore(tokens, manifest.bos_id, manifest)


def _dtype(split: str, tokens: Array) -> Any:
    if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
        raise UserError(f"the split {split!r} is {tokens.ndim}-dimensional {tokens.dtype}, not a flat array of ids")
    return str(tokens.dtype)
