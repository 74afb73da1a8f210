"""Token stores on disk, and batches as a pure function of (seed, step).

A split of a corpus is one flat array of token ids in which every document starts with BOS, memory-mapped from a file
beside a JSON manifest. Training reads fixed windows of it; which windows make up a batch is computed from the seed and
the step alone, so a data cursor is one integer, resuming needs no state, and any step can be looked at again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from jax_interp.core.errors import UserError
from jax_interp.data.shuffling import mix64, seed_bits, shuffled

MANIFEST = "manifest.json"
_OFFSETS = np.uint64(0x0FF5E7)  # domains of the hash: offsets and repeats must not follow the order of the windows
_REPEATS = np.uint64(0x9E3779B9)
_DOCUMENTS = np.uint64(0xD0C5_0000_0000)
_RANDOM_ROWS = 0x72616E64  # keeps these draws apart from every other use of a seed


@dataclass(frozen=True)
class TokenStore:
    """The tokens of one split: a flat, usually memory-mapped array; documents back to back, BOS first in each."""

    tokens: Int[Array, " n"]
    bos_id: int
    manifest: Mapping[str, Any]

    @property
    def starts(self) -> Int[Array, " documents"]:
        """Positions at which documents start."""
        return np.flatnonzero(self.tokens == self.bos_id)

    def documents(self) -> list[Int[Array, " length"]]:
        """The documents, each with its BOS, as views."""
        return np.split(self.tokens, self.starts[1:])


def pack(documents: Iterable[Iterable[int]], *, vocab_size: int) -> Int[Array, " n"]:
    """Documents of token ids laid back to back: uint16 when the vocabulary fits, else int32."""
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.int32
    parts = [np.asarray(document, dtype=np.int64) for document in documents]
    flat = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if flat.size and (flat.min() < 0 or flat.max() >= vocab_size):
        raise UserError(f"token ids run from {flat.min()} to {flat.max()}, outside a vocabulary of {vocab_size}")
    return flat.astype(dtype)


def write_store(
    directory: str | Path,
    splits: Mapping[str, Int[Array, " n"]],
    *,
    bos_id: int,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write each split as `<name>.npy` and, last, a manifest with their lengths, dtypes and SHA-256 (and `about`).

    The manifest appears whole or not at all, so a store that has one was written to its end.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, tokens in splits.items():
        np.save(directory / f"{name}.npy", tokens)
        entries[name] = {"tokens": int(tokens.size), "dtype": str(tokens.dtype), "sha256": _sha256(tokens)}
    manifest = {"format": 1, "bos_id": int(bos_id), "splits": entries, "about": dict(about or {})}
    beside = directory / f".{MANIFEST}.tmp"
    with open(beside, "w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, directory / MANIFEST)


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """The manifest of the store in `directory`; None where there is none, or one that was cut short."""
    try:
        manifest = json.loads((Path(directory) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and {"bos_id", "splits", "about"} <= manifest.keys() else None


def open_store(directory: str | Path, split: str, *, verify: bool = True) -> TokenStore:
    """Memory-map one split.

    `verify` reads it once and compares the recorded SHA-256. Raises `UserError` for a directory without a readable
    manifest, an unknown split, and a file that is not what the manifest says.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if manifest is None:
        what = "an unreadable" if (directory / MANIFEST).exists() else "no"
        raise UserError(f"no token store in {directory}: there is {what} {MANIFEST}; write one with write_store")
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


@dataclass(frozen=True)
class WindowSampler:
    """Which windows of a token array make up the batch of a step: a pure function of (seed, step).

    An epoch visits every window of `length` tokens once, in an order of its own; consecutive windows start `stride`
    tokens apart (default `length - 1`: a window's last token is the next one's first, so that predicting the next
    token predicts every token once per epoch) after an offset that also changes with the epoch, so that documents
    are not always cut in the same places. Batches run across the ends of epochs; nothing is dropped at them.
    """

    tokens: Int[Array, " n"]
    batch: int
    length: int
    seed: int = 0
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.length < 2 or self.step_size < 1:
            raise UserError(f"batch={self.batch}, length={self.length} and stride={self.stride}: at least 1, 2 and 1")
        if self.windows < 1:
            raise UserError(f"{self.tokens.size} tokens are fewer than one window of {self.length} at any offset")

    @property
    def step_size(self) -> int:
        """Tokens between the starts of consecutive windows."""
        return self.length - 1 if self.stride is None else self.stride

    @property
    def windows(self) -> int:
        """Windows in an epoch: as many as fit whatever the epoch's offset."""
        return (int(self.tokens.size) - self.length - (self.step_size - 1)) // self.step_size + 1

    def starts_at(self, step: int) -> Int[Array, " batch"]:
        """Where the windows of batch `step` start. O(batch), whatever the step and the size of the store."""
        index = int(step) * self.batch + np.arange(self.batch, dtype=np.int64)
        epoch = (index // self.windows).astype(np.uint64)
        window = shuffled(index % self.windows, self.windows, seed=self.seed, epoch=epoch)
        offset = mix64(mix64(seed_bits(self.seed)) ^ mix64(epoch ^ _OFFSETS)) % np.uint64(self.step_size)
        return window * self.step_size + offset.astype(np.int64)

    def batch_at(self, step: int) -> Int[Array, "batch length"]:
        """The tokens of batch `step`, int32."""
        return self.tokens[self.starts_at(step)[:, None] + np.arange(self.length)].astype(np.int32)


def repeat_stretches(
    tokens: Int[Array, "batch length"], step: int, *, fraction: float, seed: int = 0
) -> Int[Array, "batch length"]:
    """The batch of `step` with a stretch said twice in about `fraction` of its rows: a function of (seed, step).

    In a chosen row `row[i] = row[i - m]` for the `m` places after some place, with `m` between an eighth and half of
    the row. Copying from context is then worth learning early, whatever the text; the same place is never a fixed
    distance away.
    """
    batch, length = tokens.shape
    row = np.arange(batch, dtype=np.uint64)
    key = mix64(mix64(seed_bits(seed)) ^ np.uint64(step))
    draw = [mix64(key ^ (row + _REPEATS * np.uint64(k))) for k in (1, 2, 3)]
    chosen = (draw[0] >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction
    low, high = max(1, length // 8), max(1, length // 2)
    period = low + (draw[1] % np.uint64(high - low + 1)).astype(np.int64)
    start = (draw[2] % (length - 2 * period + 1).astype(np.uint64)).astype(np.int64)
    place = np.arange(length)
    second = (place >= (start + period)[:, None]) & (place < (start + 2 * period)[:, None])
    source = np.where(second & chosen[:, None], place - period[:, None], place)
    return np.take_along_axis(tokens, source, axis=1)


def random_repeats(
    tokens: Int[Array, "batch length"], step: int, *, fraction: float, vocab_size: int, bos_id: int, seed: int = 0
) -> Int[Array, "batch length"]:
    """The batch of `step` with about `fraction` of its rows made of nothing but repetition: a function of (seed, step).

    Such a row is BOS and then `m` tokens drawn uniformly (BOS excepted), said over and over to its end, with `m`
    between 8 and half of the row: only copying from context predicts it.
    """
    if fraction <= 0:
        return tokens
    batch, length = tokens.shape
    rng = np.random.default_rng([int(seed_bits(seed)), step, _RANDOM_ROWS])
    chosen = rng.random(batch) < fraction
    period = rng.integers(8, max(9, length // 2), size=batch)
    drawn = rng.integers(0, vocab_size - 1, size=(batch, length))
    drawn += drawn >= bos_id
    rows = np.take_along_axis(drawn, np.arange(length) % period[:, None], axis=1)
    rows[:, 0] = bos_id
    return np.where(chosen[:, None], rows, tokens).astype(tokens.dtype)


def begin_as_documents(
    tokens: Int[Array, "batch length"], step: int, *, fraction: float, bos_id: int, seed: int = 0
) -> Int[Array, "batch length"]:
    """The batch of `step` with BOS in place of the first token of about `fraction` of its rows: a function of (seed,
    step). Otherwise hardly a window begins with BOS, as every prompt does."""
    row = np.arange(len(tokens), dtype=np.uint64)
    draw = mix64(mix64(mix64(seed_bits(seed)) ^ np.uint64(step)) ^ (row + _DOCUMENTS))
    out = tokens.copy()
    out[(draw >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction, 0] = bos_id
    return out


def evaluation_windows(
    tokens: Int[Array, " n"], length: int, *, pad_id: int, overlap: int = 1
) -> Int[Array, "windows length"]:
    """Every token in order in windows of `length`, int32, the last one padded with `pad_id`; for evaluation.

    Consecutive windows share `overlap` tokens, so with the default every token but the very first is predicted once.
    """
    stride = length - overlap
    count = max(1, math.ceil((tokens.size - overlap) / stride))
    padded = np.full(overlap + count * stride, pad_id, np.int32)
    padded[: tokens.size] = tokens
    return padded[np.arange(count)[:, None] * stride + np.arange(length)]


def special_mask(tokens: Int[Array, "*shape"], special_ids: Iterable[int]) -> Bool[Array, "*shape"]:
    """True where a token is ordinary: none of `special_ids` (BOS, padding)."""
    return ~np.isin(tokens, sorted(special_ids))
