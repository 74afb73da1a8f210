"""Profiles of single steps: a trace of `jax.profiler` in the run directory, and a table of the slowest operations.

    fit(step, state, batch_at, steps=1000, run="runs/sae", log=Log(profile=(11, 15)))
    echo 5 > runs/sae/profile-now          the next five steps of a run that goes on

The trace is in `profile/steps-11-15/` of the run directory, with the table in `operations.txt`. Of a run over several
processes, the first one writes it. A profile changes no bit of the run, and what goes wrong in it does not end the run.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.core.leaves import PyTree
from jax_interp.core.processes import is_first_process
from jax_interp.core.terminal import print_text

REQUEST = "profile-now"
"""A file of this name in the run directory asks for a profile of the next steps. It holds their number, or nothing."""
DEFAULT_STEPS, MOST_STEPS = 5, 1000
LOOK = 1.0
"""Seconds between two looks for the file."""


class ProfileWarning(UserWarning):
    """A profile could not be written. The run goes on."""


def check_range(asked: tuple[int, int] | None, steps: int, saved: bool) -> None:
    """Raises UserError if there are no such steps, or no run directory."""
    if asked is None:
        return
    if not saved:
        raise UserError("a profile is written into the run directory: give run=")
    first, last = asked
    if not 1 <= first <= last <= steps:
        raise UserError(f"profile {first}..{last}: give two steps from 1 to {steps}, such as 11..15")
    if last - first >= MOST_STEPS:
        raise UserError(f"profile {first}..{last} has {last - first + 1} steps: give at most {MOST_STEPS}")


def parse_range(text: str) -> tuple[int, int]:
    """(11, 15) from "11..15", or (11, 11) from "11".

    Raises:
      UserError: the text is something else.
    """
    first, dots, last = text.partition("..")
    if not first.isdecimal() or not (last.isdecimal() if dots else True):
        raise UserError(f"--profile {text!r}: give two steps as A..B, such as 11..15")
    return int(first), int(last if dots else first)


class Profiler:
    """Starts and stops the traces of one run.

    Args:
      directory: the run directory. None: nothing is profiled.
      asked: the first and the last step of a trace. None: only on request by the file.
      start: the number of steps that are done already.
      quiet: do not say where the trace is.
    """

    def __init__(self, directory: Path | None, asked: tuple[int, int] | None, start: int, quiet: bool):
        self._directory = directory if is_first_process() else None
        self._asked, self._quiet = asked, quiet
        self._until: int | None = None
        self._from, self._look = 0, 0.0
        self._open = contextlib.ExitStack()
        if asked and self._directory and start >= asked[1]:
            self._asked = None
            self._say(f"steps {asked[0]} to {asked[1]} are done already: they are not profiled")

    def before(self, k: int, state: PyTree) -> None:
        """Called before step k. `state` is the state that the step reads."""
        if self._directory is None:
            return
        if self._until is None and (last := self._due(k, self._directory)) is not None:
            jax.block_until_ready(state)  # or the trace begins with what is left of earlier steps
            self._begin(k, last)
        if self._until is not None:
            self._open.enter_context(jax.profiler.StepTraceAnnotation("step", step_num=k))

    def after(self, k: int, state: PyTree) -> None:
        """Called after step k. `state` is its result."""
        if self._until is None:
            return
        self._open.close()
        if k >= self._until:
            jax.block_until_ready(state)
            self._end(k)

    def close(self) -> None:
        """End a trace that is still open, because the run ends."""
        self._open.close()
        if self._until is not None:
            with contextlib.suppress(Exception):
                jax.profiler.stop_trace()
            self._until = None

    def _due(self, k: int, directory: Path) -> int | None:
        """The last step of a trace that begins with step k. None: none begins."""
        if self._asked and self._asked[0] <= k <= self._asked[1]:
            last, self._asked = self._asked[1], None
            return last
        if time.monotonic() < self._look:
            return None
        self._look = time.monotonic() + LOOK
        request = directory / REQUEST
        if not request.exists():
            return None
        try:
            text = request.read_text(errors="replace")[:20].strip()
            request.unlink()
        except OSError as error:
            warnings.warn(f"{request}: {error.strerror}; nothing is profiled", ProfileWarning, stacklevel=2)
            return None
        if text and not (text.isdecimal() and 0 < int(text) <= MOST_STEPS):
            warnings.warn(f"{request} holds {text!r}: give 1 to {MOST_STEPS} steps", ProfileWarning, stacklevel=2)
            return None
        return k + int(text or DEFAULT_STEPS) - 1

    def _place(self, last: int) -> Path:
        assert self._directory is not None
        return self._directory / "profile" / f"steps-{self._from}-{last}"

    def _begin(self, k: int, last: int) -> None:
        self._from = k
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it would slow the steps down
        try:
            shutil.rmtree(self._place(last), ignore_errors=True)
            jax.profiler.start_trace(str(self._place(last)), profiler_options=options)
            self._until = last
        except Exception as error:  # another trace is active, or the place cannot be written
            warnings.warn(f"no profile of steps {k} to {last}: {error}", ProfileWarning, stacklevel=2)

    def _end(self, k: int) -> None:
        place, self._until = self._place(self._until or k), None
        try:
            jax.profiler.stop_trace()
            rows = operations(place)
            atomic_write(place / "operations.txt", "\n".join(table(rows, k - self._from + 1, most=100)) + "\n")
        except Exception as error:
            warnings.warn(f"the profile of steps {self._from} to {k} is not complete: {error}", ProfileWarning, 2)
            return
        for line in table(rows, k - self._from + 1, most=8):
            self._say(line)
        self._say(f"profile of steps {self._from} to {k} in {place}: tensorboard --logdir {place} (with the package")
        self._say("xprof), or drop its .trace.json.gz on https://ui.perfetto.dev; operations.txt has the whole table")

    def _say(self, line: str) -> None:
        if not self._quiet:
            print_text(line, file=sys.stderr)


@dataclass(frozen=True)
class Operation:
    """The time that one operation of a compiled program takes, without what runs inside it.

    name, program: the names in the HLO. seconds: summed over all devices and threads. count: how often it ran.
    """

    name: str
    program: str
    seconds: float
    count: int


def operations(place: Path) -> list[Operation]:
    """The operations in a trace, the longest first.

    Args:
      place: the directory that `jax.profiler.start_trace` was given.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for path in sorted(place.rglob("*.xplane.pb")):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for name, program, seconds in _own_times(line.events):
                    found[name, program].append(seconds)
    rows = [Operation(name, program, sum(times), len(times)) for (name, program), times in found.items()]
    return sorted(rows, key=lambda row: -row.seconds)


def _own_times(events: Any) -> Iterator[tuple[str, str, float]]:
    """(operation, program, seconds without the operations inside it) of the events of one thread or device line."""
    spans = []
    for event in events:
        about = dict(event.stats)
        if "hlo_op" in about:
            spans.append((event.start_ns, -event.duration_ns, str(about["hlo_op"]), str(about.get("hlo_module", ""))))
    stack: list[list[Any]] = []
    for begin, minus, name, program in sorted(spans):
        while stack and stack[-1][0] <= begin:
            yield tuple(stack.pop()[1:])  # type: ignore[misc]
        if stack:
            stack[-1][3] += minus * 1e-9
        stack.append([begin - minus, name, program, -minus * 1e-9])
    for done in reversed(stack):
        yield tuple(done[1:])  # type: ignore[misc]


def table(rows: list[Operation], steps: int, most: int) -> list[str]:
    """The operations as lines of text: milliseconds per step, share of all operations, count per step, name."""
    total = sum(row.seconds for row in rows)
    if not total:
        return ["the trace names no operations"]
    out = [f"{'ms/step':>10} {'share':>6} {'runs/step':>9}  operation (program)"]
    for row in rows[:most]:
        share = f"{100 * row.seconds / total:.1f} %"
        out.append(
            f"{1e3 * row.seconds / steps:>10.3f} {share:>6} {row.count / steps:>9.1f}  {row.name} ({row.program})"
        )
    return out
