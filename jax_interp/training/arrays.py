"""The arrays of one checkpoint, written and read by orbax. A failed write raises one `OSError` and prints nothing else.

Orbax writes in several threads. When the disk is full, each of them logs a traceback of its own, and the error that
reaches the caller can be of any type. Here the log is silent, and the error of the operating system is found.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jaxtyping import Array


class UnreadableArrays(Exception):
    """The files of the arrays cannot be read: they are missing, truncated or altered."""


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays to the new directory `path`. The files are not flushed to the disk.

    They are compressed by zstd, whose checks find damage. Without compression a save takes a tenth of the processor
    time (benchmarks/emergency_save.py), and reading a step with a flipped bit can end the process (jax 0.12 stack).

    Raises:
      OSError: the operating system refused a write: the disk is full, too many files are open, or a similar reason.
    """
    from orbax.checkpoint import v1 as ocp

    code = 0
    with _silent_threads():
        try:
            ocp.save(str(path), dict(arrays))
        except Exception as error:
            code = system_error(error)
            if not code:
                raise
        if code:  # the error and its frames are gone now, but not the threads and coroutines that refer to each other
            gc.collect()
    if code:
        raise OSError(code, os.strerror(code))


def read_arrays(path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct], *, alone: bool = False) -> dict[str, Array]:
    """Read arrays of the given shapes, dtypes and shardings.

    Args:
      path: the directory.
      wanted: what is read, by name.
      alone: of a run over several processes, only this one reads.

    Raises:
      UnreadableArrays: the files are damaged.
    """
    from orbax.checkpoint import v1 as ocp

    try:
        with _silent_threads(), _alone() if alone else contextlib.nullcontext():
            return ocp.load(str(path), dict(wanted))
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # running out of memory does not mean that the file is damaged
    except Exception as error:  # orbax, tensorstore and zstd have no common type for unreadable data
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnreadableArrays(first[:300]) from error


def _alone() -> contextlib.AbstractContextManager[object]:
    """A context in which orbax waits for no other process."""
    from orbax.checkpoint import v1 as ocp

    me = jax.process_index()
    return ocp.Context(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix="alone"
        )
    )


def system_error(error: BaseException) -> int:
    """The code of the operating system's error that caused `error`, or 0 if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen.errno
        code = re.search(r"os_error_code='(\d+)'", str(seen))  # how tensorstore, which is written in C++, reports it
        if code is not None:
            return int(code[1])
        seen = seen.__cause__ or seen.__context__
    return 0


@contextlib.contextmanager
def _silent_threads() -> Iterator[None]:
    """Within the block the threads of orbax print nothing. What they raise reaches the caller all the same."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    refuse = lambda record: False
    logger.addFilter(refuse)
    sys.unraisablehook = lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(refuse)
