"""Two simulated devices of one process as if they were of two hosts: what a host cannot read is an error.

    with hosts_apart():
        evaluate(model, ...)        an AssertionError if the package reads an array with parts on several devices

Over several processes, NumPy cannot read an array whose parts are on several hosts. The package exchanges the parts
first, by `to_host` and `on_host` of core/processes.py. In one process NumPy can read any array, so this would not be
noticed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax

import jax_interp
from jax_interp.core import processes

PACKAGE = str(Path(jax_interp.__file__).parent)
LIBRARIES = str(Path(jax.__file__).parent.parent)


@contextlib.contextmanager
def hosts_apart() -> Iterator[None]:
    """Within the block, code of the package may read an array with parts on several devices only by `to_host` and
    `on_host`. Tests and other programs may read it."""
    kind: Any = type(jax.numpy.zeros(()))
    before = kind._value

    def read(array):
        if len(array.sharding.device_set) > 1 and not array.is_fully_replicated:
            frame = _caller(sys._getframe(1))
            if frame is not None and frame.f_code.co_filename != processes.__file__:
                place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise AssertionError(f"{place} reads {array.aval} with parts on several devices")
        return before.__get__(array)

    kind._value = property(read)
    try:
        yield
    finally:
        kind._value = before


def _caller(frame: FrameType | None) -> FrameType | None:
    """The innermost frame outside the libraries, if it is in the package."""
    while frame is not None and frame.f_code.co_filename.startswith((LIBRARIES, "<")):
        frame = frame.f_back
    return frame if frame is not None and frame.f_code.co_filename.startswith(PACKAGE) else None
