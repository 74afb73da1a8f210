"""The progress display: a bar on a terminal, or a line of text at intervals otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jax_interp.core.processes import is_first_process
from jax_interp.core.terminal import print_text, printable


class Progress:
    """Base class of progress displays. By default all methods do nothing."""

    def step(self, done: int) -> None:
        """Called after every step, with the number of steps that are done."""

    def values(self, done: int, values: Mapping[str, Any]) -> None:
        """Called with the metrics of a step, whenever they are logged."""

    def close(self) -> None:
        """Called at the end of the run, also after an error."""


def short_number(value: Any) -> str:
    """A number in five or six characters: 0.03512, 4.187, 28.3k, 1.2M."""
    if not isinstance(value, (int, float)):
        return str(value)
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= scale:
            return f"{value / (1e3 if letter == 'k' else scale):.3g}{letter}"
    return f"{value:.4g}"


def shown_values(values: Mapping[str, Any], shown: Sequence[str]) -> str:
    """The values with the names in `shown`, as text: `loss 4.187  tokens/s 28.3k`. Missing names are skipped."""
    return "  ".join(f"{name} {short_number(values[name])}" for name in shown if name in values)


def duration(seconds: float) -> str:
    """Seconds as `0:42`, `12:05` or `3:07:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Lines(Progress):
    """One line to stderr at the first step, every `seconds`, and at the end: for pipes, files and batch jobs."""

    def __init__(self, title: str, start: int, steps: int | None, shown: Sequence[str], seconds: float = 30.0):
        self._title, self._start, self._steps, self._shown, self._seconds = title, start, steps, shown, seconds
        self._began = time.monotonic()
        self._next, self._done, self._values = self._began, start, {}

    def step(self, done: int) -> None:
        self._done = done
        if time.monotonic() >= self._next and self._values:
            self._print()

    def values(self, done: int, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def close(self) -> None:
        if self._done > self._start:
            self._print()

    def _print(self) -> None:
        now = time.monotonic()
        self._next = now + self._seconds
        steps = self._done if self._steps is None else self._steps
        left = (now - self._began) / max(self._done - self._start, 1) * (steps - self._done)
        when = f"ETA {duration(left)}" if left else f"took {duration(now - self._began)}"
        values = shown_values(self._values, self._shown)
        done = f"{self._done}" if self._steps is None else f"{self._done}/{steps}"
        print_text(f"{self._title} {done}  {values}  {when}", file=sys.stderr)


class Bar(Progress):
    """A bar on the terminal: steps, the chosen values, the time spent and the time that remains."""

    def __init__(self, title: str, start: int, steps: int | None, shown: Sequence[str]):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._shown = shown
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(printable(title), total=steps, completed=start, values="")
        self._bar.start()

    def step(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def values(self, done: int, values: Mapping[str, Any]) -> None:
        self._bar.update(self._task, values=printable(shown_values(values, self._shown)))

    def close(self) -> None:
        self._bar.stop()


class Silent(Progress):
    """Shows nothing."""


def progress(title: str, start: int, steps: int | None, shown: Sequence[str], *, quiet: bool = False) -> Progress:
    """The display for a run: a bar if stderr is a terminal, lines if it is not, nothing if `quiet`.

    Of a run over several processes, only the first one shows something.

    Args:
      title: the title of the run.
      start: steps that are done already.
      steps: steps of the complete run. None: not known.
      shown: names of the values that are displayed.
      quiet: show nothing.
    """
    if quiet or not is_first_process():
        return Silent()
    return Bar(title, start, steps, shown) if sys.stderr.isatty() else Lines(title, start, steps, shown)
