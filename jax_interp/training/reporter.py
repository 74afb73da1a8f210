"""The metrics of the steps: read from the device, checked, logged and displayed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.processes import is_first_process, to_host
from jax_interp.core.terminal import print_text
from jax_interp.training.log_writers import LogWriter, make_writers
from jax_interp.training.metrics import MetricsLog, flatten_metrics, read_log
from jax_interp.training.nonfinite import NonFinite, what_to_do
from jax_interp.training.options import Log
from jax_interp.training.progress import Progress, progress
from jax_interp.training.runs import Run

Metrics = Mapping[str, Any]
"""name -> array, number, or nested metrics"""


class Reporter:
    """Reads the metrics of each step from the device, checks that they are finite, logs them and displays them.

    The device may be `IN_FLIGHT` steps ahead, so it does not wait for the host.
    """

    def __init__(
        self,
        log: Log,
        run: Run | None,
        span: tuple[int, int],
        files: tuple[MetricsLog, ...],
        writers: Sequence[LogWriter],
        view: Progress,
    ):
        self.view = view
        self._writers = writers
        self.every = log.every or 10
        self._log, self._run, self._files = log, run, files
        self._steps = span[1]
        self.checked = span[0]
        """The last step whose metrics were read and are finite."""
        self._clock = (span[0], time.monotonic())
        self._pending: deque[tuple[int, Metrics]] = deque()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, log: Log, run: Run | None, start: int, steps: int) -> Iterator[Reporter]:
        """The reporter of steps `start + 1` to `steps`. Its files and its display are closed after the block."""
        with contextlib.ExitStack() as stack:
            paths = (run.metrics, run.timing) if run and is_first_process() else ()
            files = tuple(stack.enter_context(contextlib.closing(MetricsLog(path))) for path in paths)
            writers = make_writers(log.to, run, read_log(run.metrics)) if log.to and files and run else []
            for writer in writers:
                stack.enter_context(contextlib.closing(writer))
            quiet = log.quiet or not is_first_process()
            if start and run and not quiet:
                resuming = f"resuming after step {start} of {steps}, from {run.directory}"
                print_text(f"{log.title}: {resuming}", file=sys.stderr)
            shown = [*(log.shown or ()), *(f"{name}/s" for name in log.per_step or ())]
            view = progress(log.title or "", start, steps, shown, quiet=quiet)
            yield cls(log, run, (start, steps), files, writers, stack.enter_context(contextlib.closing(view)))

    def add(self, k: int, metrics: Metrics) -> None:
        """Queue the metrics of step `k` and start their copy to the host."""
        jax.tree.map(_to_host, metrics)
        self._pending.append((k, metrics))

    def report(self, waiting: int) -> None:
        """Report all queued steps except the last `waiting` steps."""
        while len(self._pending) > waiting:
            self._report(*self._pending.popleft())

    def mark(self) -> dict[str, Any]:
        """What a checkpoint records about the metrics log, which is flushed to the disk."""
        return {"log": self._files[0].mark()} if self._files else {}

    def _report(self, k: int, metrics: Metrics) -> None:
        values = self._finite(k, flatten_metrics(to_host(metrics)))
        self.checked = k
        if k % self.every and k != self._steps and not any(name.startswith("eval.") for name in values):
            return
        now = time.monotonic()
        speed = (k - self._clock[0]) / max(now - self._clock[1], 1e-9)
        self._clock = (k, now)
        rates = {f"{name}/s": amount * speed for name, amount in (self._log.per_step or {}).items()}
        totals = {name: k * amount for name, amount in (self._log.per_step or {}).items() if name in values}
        record, timed = {"step": k} | values | totals, {"steps/s": speed} | rates
        for file, line in zip(self._files, (record, {"step": k, "time": time.time()} | timed)):
            file.write(line)
        for writer in self._writers:
            writer.write(record)
        self.view.values(k, record | timed)
        if self._log.on_record:
            self._log.on_record(record)

    def _finite(self, k: int, values: dict[str, Any]) -> dict[str, Any]:
        """`values`, with None for a NaN that is allowed. Raises NonFinite for any other value that is not finite."""
        if "step" in values:
            raise UserError("a metric cannot be named 'step': the log uses this name for the number of the step")
        nullable = tuple(self._log.may_be_nan or ())
        for name, value in values.items():
            if isinstance(value, float) and np.isnan(value) and name.startswith(nullable):
                values[name] = None
            elif not isinstance(value, str) and value is not None and not np.all(np.isfinite(value)):
                raise NonFinite(k, name, str(value), what_to_do(self._run, before_any_update=k == 1))
        return values


def _to_host(x: Any) -> None:
    if isinstance(x, jax.Array):
        x.copy_to_host_async()
