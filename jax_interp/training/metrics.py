"""The metrics log of a run: one JSON object a line, the same bytes whether or not the run was interrupted.

    {"step": 100, "loss": 0.8125, "l0": 32.0}

`metrics.jsonl` holds values that are functions of the state only. What depends on the clock (steps and tokens per
second) goes to `timing.jsonl`, which makes no such promise. Records are written before the checkpoint that contains
their step, so a resumed run cuts the file back to its step and goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.training.atomic_write import atomic_write


def plain(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metrics as one flat dict of Python numbers, `{"loss": {"mse": x}}` -> `{"loss.mse": 0.5}`.

    Arrays become nested lists. A float32 becomes the float64 of the same value, whose shortest decimal form JSON
    writes and reads back exactly.
    """
    out: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            out |= plain(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, str):
            out[f"{prefix}{name}"] = value
        else:
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":  # bfloat16 and the like are not numpy's own kinds
                array = array.astype(np.float32)
            out[f"{prefix}{name}"] = array.tolist()
    return out


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The records of a log. A last line without its newline was being written when the process died: left out."""
    path = Path(path)
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.split(b"\n") if line]


def truncate_log(path: Path | str, step: int) -> None:
    """Drop the half-written last line and every record past `step`, keeping the bytes of the others as they are."""
    path = Path(path)
    if not path.exists():
        return
    content = path.read_bytes()
    lines = content.rpartition(b"\n")[0].split(b"\n")
    kept = b"".join(line + b"\n" for line in lines if line and json.loads(line)["step"] <= step)
    if kept != content:
        atomic_write(path, kept)


class MetricsLog:
    """Appends records to one file. Each is handed to the kernel whole, so SIGKILL loses none of them."""

    def __init__(self, path: Path | str):
        self._file = open(path, "ab")  # noqa: SIM115  closed by close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. It must have a "step"; NaN and infinity are written as JSON's usual extensions."""
        self._file.write(json.dumps(dict(record)).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush to the disk: before a checkpoint that claims these records exist."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
