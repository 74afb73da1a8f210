"""The metrics log of a run: one JSON object per line. An interrupted run and an uninterrupted run have the same bytes.

    {"step": 100, "loss": 0.8125, "l0": 32.0}

`metrics.jsonl` contains only values that are functions of the state. Values that depend on the clock (steps and tokens
per second) go to `timing.jsonl`, whose bytes may differ. A record is written before the checkpoint of its step, and the
checkpoint records the length and the digest of the log. A resumed run therefore removes what follows that length, and
continues the file. If the file is shorter or was changed, the resume is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.core.atomic_write import atomic_write, sync
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json


class LogError(UserError):
    """A metrics log that is not the log of its checkpoint: it was cut, changed or removed."""


def flatten_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested metrics to one dict of Python numbers: `{"loss": {"mse": x}}` -> `{"loss.mse": 0.5}`.

    Arrays become nested lists. A float32 becomes the float64 of the same value, which JSON writes and reads exactly.
    """
    out: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            out |= flatten_metrics(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, str):
            out[f"{prefix}{name}"] = value
        else:
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":  # bfloat16 and other dtypes that are not part of numpy
                array = array.astype(np.float32)
            out[f"{prefix}{name}"] = array.tolist()
    return out


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The records of a log.

    A last line without a newline is skipped, because the process died while writing it.

    Args:
      path: a `metrics.jsonl` or `timing.jsonl`. If the file does not exist, the result is empty.

    Raises:
      UserError: a line is not a record. The message gives the number of the line.
    """
    return [record for _, record in _lines(Path(path))]


def truncate_log(path: Path | str, step: int) -> None:
    """Remove an incomplete last line and every record after `step`. The bytes of the other records do not change."""
    replace_log(Path(path), log_up_to(Path(path), step, None))


def replace_log(path: Path, content: bytes) -> None:
    """Write a log, unless it has this content already."""
    if content != (path.read_bytes() if path.exists() else b""):
        atomic_write(path, content)


def log_up_to(path: Path, step: int, mark: Mapping[str, Any] | None) -> bytes:
    """The part of a log that belongs to the checkpoint of `step`.

    Args:
      path: the log.
      step: the step.
      mark: what the checkpoint records about the log, see `MetricsLog.mark`. None: the checkpoint is of an earlier
        version. The part is then found by the steps of the records.

    Raises:
      LogError: the log is shorter than recorded, or other bytes are in it.
    """
    content = path.read_bytes() if path.exists() else b""
    if mark is None:
        return b"".join(line + b"\n" for line, record in _lines(path) if record["step"] <= step)
    kept = content[: mark["bytes"]]
    if len(kept) < mark["bytes"]:
        raise LogError(f"{path} was cut: it has {len(kept):,} bytes, and {mark['bytes']:,} at step {step}")
    if hashlib.sha256(kept).hexdigest() != mark["sha256"]:
        raise LogError(f"{path} was changed: its first {len(kept):,} bytes are not those of step {step}")
    return kept


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The complete, non-empty lines of a log, each with its record."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    for number, line in enumerate(whole.split(b"\n"), start=1):
        if not line:
            continue
        record = parse_json(line, f"{path}, line {number},", nonfinite=True)
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f'{path}, line {number}, is not a record: it should be an object with a "step"')
        yield line, record


def mark_of(content: bytes) -> dict[str, Any]:
    """The length and the digest of a log, as a checkpoint records them."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


class MetricsLog:
    """Appends records to one file. Each record is flushed to the kernel, so a killed process loses no record."""

    def __init__(self, path: Path | str):
        new = not Path(path).exists()
        self._file = open(path, "a+b")  # noqa: SIM115  closed by close()
        if new:
            sync(Path(path).parent)  # or a checkpoint could be on the disk, and the name of its log not
        self._file.seek(0)
        self._digest = hashlib.sha256()
        self._length = 0
        while piece := self._file.read(1 << 20):
            self._digest.update(piece)
            self._length += len(piece)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, which must have a "step". NaN and infinity are written as `NaN` and `Infinity`."""
        line = json.dumps(dict(record)).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._digest.update(line)
        self._length += len(line)

    def mark(self) -> dict[str, Any]:
        """The length and the digest of the file, for the record of a checkpoint. The file is flushed to the disk."""
        os.fsync(self._file.fileno())
        return {"bytes": self._length, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written has raised in `write`, and is written again here
            self._file.close()
