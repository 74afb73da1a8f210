"""Token stores on disk: one flat array of tokens for each split of a corpus, and a JSON manifest.

Every document starts with BOS. The arrays are memory-mapped when they are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class TokenStore:
    """The tokens of one split: concatenated documents, each with BOS first."""

    tokens: Int[Array, " n"]
    """A flat array, usually memory-mapped."""
    bos_id: int
    manifest: Mapping[str, Any]
    """The content of the manifest: "splits", "bos_id", and "about" (a description of the corpus)."""

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

    The manifest is written last and atomically. A store with a manifest is therefore complete.

    Args:
      directory: the directory of the store. It is created if it is missing.
      splits: the tokens of each split, by name, as `pack` returns them.
      bos_id: the id of BOS.
      about: JSON values that describe the corpus. They are written to the manifest.

    Example:
        write_token_store("tokens", {"train": pack(ids, vocab_size=2048)}, bos_id=0)
        store = open_token_store("tokens", "train")
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, tokens in splits.items():
        np.save(directory / f"{name}.npy", tokens)
        entries[name] = {"tokens": int(tokens.size), "dtype": str(tokens.dtype), "sha256": _sha256(tokens)}
    manifest = {"format": 1, "bos_id": int(bos_id), "splits": entries, "about": dict(about or {})}
    atomic_write(directory / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """The manifest of the store in `directory`; None if it is missing or incomplete."""
    try:
        manifest = json.loads((Path(directory) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and {"bos_id", "splits", "about"} <= manifest.keys() else None


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
        what = "an unreadable" if (directory / MANIFEST).exists() else "no"
        raise UserError(f"no token store in {directory}: there is {what} {MANIFEST}; write one with write_token_store")
    if split not in manifest["splits"]:
        raise UserError(f"{directory} has no split {split!r}, it has {sorted(manifest['splits'])}")
    entry = manifest["splits"][split]
    try:
        tokens = np.load(directory / f"{split}.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {directory / split}.npy: {error}; write the store again") from error
    if tokens.size != entry["tokens"] or str(tokens.dtype) != entry["dtype"]:
        raise UserError(f"{directory / split}.npy holds {tokens.size} {tokens.dtype}, the manifest says {entry}")
    if verify and _sha256(tokens) != entry["sha256"]:
        raise UserError(f"{directory / split}.npy was changed since it was written (SHA-256); write the store again")
    return TokenStore(tokens, manifest["bos_id"], manifest)


def _sha256(tokens: Int[Array, " n"]) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens)).hexdigest()
