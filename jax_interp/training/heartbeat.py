"""The heartbeat of a run: a small file that says how far the loop is, and how it ended.

    heartbeat.json      {"state": "running", "step": 120, "steps": 800, "step_time": ..., "process": 4711, ...}

`jax-interp status` reads it. The loop only stores numbers. A thread writes the file at most every `SECONDS`, so no step
waits for a disk. The thread writes its own time ("written") beside the time of the last step ("step_time"): a process
that lives and does no step looks different from a process that is gone. The end of the run is written by the loop.
Of a run over several processes, the first one has a heartbeat.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import write_json
from jax_interp.core.process_times import process_began
from jax_interp.core.processes import is_first_process, process_count

FILE = "heartbeat.json"
SECONDS = 5.0
Doing = Literal["compile", "step", "evaluate", "save"]


class Heartbeat:
    """The file of one run. Without a directory, nothing is written."""

    def __init__(self, directory: Path | None, about: Mapping[str, Any], seconds: float = SECONDS):
        self._path = None if directory is None or not is_first_process() else directory / FILE
        self._about = {
            **about,
            "process": os.getpid(),
            "process_began": process_began(os.getpid()),
            "processes": process_count(),
            "host": socket.gethostname(),
            "began": time.time(),
        }
        self._now: tuple[int, float, Doing] = (int(about.get("first_step", 0)), time.time(), "compile")
        self._seconds, self._ended = seconds, threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self, step: int, doing: Doing = "step") -> None:
        """Note that `step` is done and its metrics are finite, and what the loop does next."""
        self._now = (step, time.time(), doing)

    def saved(self, seconds: float) -> None:
        """Note how long the last save took."""
        self._about = self._about | {"save_seconds": seconds}

    def begin(self) -> None:
        """Write the file, and start the thread that keeps it up to date."""
        if self._path is None:
            return
        self._write("running")
        self._thread = threading.Thread(target=self._keep, name="heartbeat", daemon=True)
        self._thread.start()

    def end(self, state: str, message: str = "") -> None:
        """Write how the run ended."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._path is not None:
            self._write(state, message)

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds):
            self._write("running")

    def _write(self, state: str, message: str = "") -> None:
        assert self._path is not None
        step, at, doing = self._now
        values = self._about | {"state": state, "step": step, "step_time": at, "doing": doing, "written": time.time()}
        with contextlib.suppress(UserError):  # a full disk: the run itself says so when it has to save
            write_json(self._path, values | ({"message": message} if message else {}))


@contextlib.contextmanager
def heartbeat(directory: Path | None, about: Mapping[str, Any], seconds: float = SECONDS) -> Iterator[Heartbeat]:
    """The heartbeat of the block. An error that leaves the block is the end of the run.

    Args:
      directory: the run directory. None: nothing is written.
      about: what does not change: "title", "first_step", "steps", "per_step".
      seconds: how often the file is written.
    """
    beating = Heartbeat(directory, about, seconds)
    beating.begin()
    try:
        yield beating
    except BaseException as error:
        beating.end(_state_of(error), " ".join(str(error).split())[:500])
        raise
    beating.end("finished")


def _state_of(error: BaseException) -> str:
    """One word for the end of a run by an error. Classes are compared by name, because they import the loop."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"Interrupted", "KeyboardInterrupt"}:
        return "stopped"
    if "NonFinite" in names:
        return "non-finite"
    if names & {"OSError", "WriteError"}:
        return "storage"
    return "refused" if "UserError" in names else "failed"
