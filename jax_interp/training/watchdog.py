"""A run over several processes does not wait for ever. If no step ends for a long time, it says why, and ends.

A collective waits for every process. If one of them is stopped, or waits for something else, all others hang. The
watchdog of each process notices it, writes the Python stacks of its threads into the run directory, and ends the run in
all processes with exit code 76. The limit is `JAX_INTERP_HANG_SECONDS` in the environment, by default half an hour.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from jax_interp.core.joined import Member, joined
from jax_interp.core.joined.join import SILENT_SECONDS, SILENT_VARIABLE, seconds
from jax_interp.core.terminal import print_text
from jax_interp.training.storage_error import safe_step

_TICK = 1.0  # seconds


class Watchdog:
    """Counts the seconds since a step ended. Without other processes nothing is watched."""

    def __init__(self, member: Member | None, directory: Path | None, start: int, steps: int):
        self._member, self._directory, self._steps = member, directory, steps
        self._done, self._waited = start, 0.0
        self._saved = start or None
        self._main = threading.get_ident()
        self._over = threading.Event()

    def beat(self, step: int) -> None:
        """A step has ended."""
        self._done, self._waited = step, 0.0

    def saved(self, step: int) -> None:
        """A step is on the disk."""
        self._saved = step

    def how_to_go_on(self) -> str:
        """A sentence on which step is safe. It reads no file, because the disk may be that of another machine."""
        return "Nothing was saved" if self._directory is None else safe_step(self._directory, self._saved)

    def write_stacks(self) -> None:
        """Write what each thread of this process does into a file, or to stderr if the run has no directory."""
        if (path := self._stacks()) is None:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            return
        with open(path, "w") as file:
            print_text(f"waiting for step {self._done + 1} of {self._steps}", file=file)
            faulthandler.dump_traceback(file, all_threads=True)

    def _stacks(self) -> Path | None:
        if self._directory is None or self._member is None:
            return None
        name = f"stacks-process-{self._member.index}.txt"
        if self._directory.is_dir():
            return self._directory / name
        return Path(tempfile.gettempdir()) / f"{self._directory.name}-{name}"  # the run is on another machine's disk

    def watch(self, member: Member, limit: float) -> None:
        """Look at the time until the run ends. Time in which this process itself was stopped does not count."""
        while not self._over.wait(_TICK):
            self._waited += _TICK
            if self._waited < limit:
                continue
            stacks = "stderr" if (path := self._stacks()) is None else path
            member.hung(
                f"no step has ended for {limit:.0f} s: process {member.index} waits for step {self._done + 1} of "
                f"{self._steps}{self._where()}; what its threads do is in {stacks}"
            )
            return

    def _where(self) -> str:
        """The innermost line of this package that the main thread is in."""
        frame = sys._current_frames().get(self._main)
        while frame is not None and "jax_interp" not in frame.f_code.co_filename:
            frame = frame.f_back
        return "" if frame is None else f", in {Path(frame.f_code.co_filename).name} line {frame.f_lineno}"

    def close(self) -> None:
        """The run has ended."""
        self._over.set()


@contextlib.contextmanager
def watched(directory: Path | None, start: int, steps: int) -> Iterator[Watchdog]:
    """Watch the steps of a run over several processes within the block.

    Args:
      directory: the run directory, or None.
      start: steps that are done already.
      steps: steps of the complete run.

    Yields:
      The watchdog. Its `beat` is called after each step.
    """
    member = joined()
    watchdog = Watchdog(member, directory, start, steps)
    if member is None:
        yield watchdog
        return
    limit = seconds(SILENT_VARIABLE, SILENT_SECONDS)
    threading.Thread(target=watchdog.watch, args=(member, limit), name="watchdog of the steps", daemon=True).start()
    member.stands(watchdog.how_to_go_on)
    with member.before_the_end(watchdog.write_stacks):
        try:
            yield watchdog
        finally:
            watchdog.close()
