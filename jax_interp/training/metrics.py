"""The metrics log of a run: one JSON object per line. An interrupted run and an uninterrupted run have the same bytes.

    {"step": 100, "loss": 0.8125, "l0": 32.0}

`metrics.jsonl` contains only values that are functions of the state. Values that depend on the clock (steps and tokens
per second) go to `timing.jsonl`, whose bytes may differ. A record is written before the checkpoint of its step. A
resumed run therefore removes the records after its checkpoint, and continues the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError


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
    path = Path(path)
    if not path.exists():
        return
    kept = b"".join(line + b"\n" for line, record in _lines(path) if record["step"] <= step)
    if kept != path.read_bytes():
        atomic_write(path, kept)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The complete, non-empty lines of a log, each with its record."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    for number, line in enumerate(whole.split(b"\n"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}, is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f'{path}, line {number}, is not a record: it should be an object with a "step"')
        yield line, record


class MetricsLog:
    """Appends records to one file. Each record is flushed to the kernel, so a killed process loses no record."""

    def __init__(self, path: Path | str):
        self._file = open(path, "ab")  # noqa: SIM115  closed by close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, which must have a "step". NaN and infinity are written as `NaN` and `Infinity`."""
        self._file.write(json.dumps(dict(record)).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush the file to the disk, before a checkpoint that relies on its records."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
