"""Random files of published formats, and what they compute.

Each `*_layouts.py` of this folder has a dictionary `LAYOUTS` of functions `(directory, rng) -> Layout`. A function
writes files as a publisher lays them out, and computes in NumPy float64 what the publisher's code computes: the
formulas share nothing with the readers. `test_every_format.py` tries every layout.

    LAYOUTS: Layouts = {}

    @layout(LAYOUTS, "my-format")
    def plain(directory, rng): ...
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass
class Layout:
    """What was written, and what a reader must find.

    Attributes:
      path: the folder or file that the user gives.
      x: inputs, [row, d], or [source, row, d] for a cross-layer dictionary.
      latents: the latents of `x`.
      outputs: the output for `x`, with a skip if there is one.
      address, writes, model, normalized, stated: what the files say.
      notes: a part of each note that must be given.
      optional: names of tensors that a file of this format may lack.
    """

    path: Path
    x: np.ndarray
    latents: np.ndarray
    outputs: np.ndarray
    address: Any = None
    writes: Any = None
    model: str | None = None
    normalized: Any = None
    notes: tuple[str, ...] = ()
    stated: dict[str, float] = dataclasses.field(default_factory=dict)
    optional: tuple[str, ...] = ()


Layouts = dict[str, Callable[[Path, np.random.Generator], Layout]]


def layout(layouts: Layouts, name: str) -> Callable:
    """Register a layout under a name: the format, and what is special."""
    return lambda function: layouts.setdefault(name, function)


def every_layout() -> Layouts:
    """The layouts of all files of this folder."""
    found: Layouts = {}
    for path in sorted(Path(__file__).parent.glob("*_layouts.py")):
        if path.name.startswith("test_"):
            continue
        module = importlib.import_module(f"tests.dictionaries.formats.{path.stem}")
        for name, function in module.LAYOUTS.items():
            known = found.setdefault(name, function)  # a file may add its layouts to those of another file
            assert known.__code__.co_filename == function.__code__.co_filename, f"{name!r} is registered twice"
    return found


def floats(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Random numbers that float32 holds exactly."""
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def relu(a: np.ndarray) -> np.ndarray:
    return np.maximum(a, 0)


def jump(pre: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """ReLU where the pre-activation is above the threshold."""
    return relu(pre) * (pre > threshold)


def top_k(pre: np.ndarray, k: int) -> np.ndarray:
    """ReLU of the k largest of the last axis."""
    least = np.sort(pre, axis=-1)[..., -k, None]
    return relu(np.where(pre >= least, pre, 0))


def wide(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, np.float64) for name, array in tensors.items()}
