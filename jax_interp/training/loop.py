"""The training loop: a jitted step that is repeated, with a log, checkpoints and exact resume.

    def step(state, batch, *frozen): ...  -> (state, metrics)     pure; metrics is a (nested) dict of arrays
    state = fit(step, state, batch_at, steps=1000, run=SaveTo("runs/sae", config, every=100))

If a run is killed and started again with the same call, its final state and its `metrics.jsonl` are bit for bit those
of an uninterrupted run. This holds because the next step depends only on the state and on the number of the step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import PyTree, flatten, is_key
from jax_interp.core.processes import to_host
from jax_interp.core.terminal import print_text
from jax_interp.training import checkpoint
from jax_interp.training.interrupt import Interrupted, StopRequest, stop_requests
from jax_interp.training.log_writers import LogWriter, make_writers
from jax_interp.training.metrics import (
    LogError,
    MetricsLog,
    flatten_metrics,
    log_up_to,
    mark_of,
    read_log,
    replace_log,
    truncate_log,
)
from jax_interp.training.options import Log, RunTarget, SaveTo
from jax_interp.training.parent import Parent
from jax_interp.training.progress import Progress, progress
from jax_interp.training.provenance import how_to_branch, warn_of_other_versions
from jax_interp.training.runs import Run
from jax_interp.training.watchdog import Watchdog, watched

IN_FLIGHT = 2  # how many steps the device may be ahead of the metrics that the host has read

Metrics = Mapping[str, Any]  # name -> array, number, or nested metrics


class NonFinite(RuntimeError):
    """A metric or a leaf of the state became NaN or infinite. `step` is the step, `quantity` the name of the value."""

    def __init__(self, step: int, quantity: str, value: str, advice: str):
        super().__init__(f"step {step}: {quantity} is {value}. {advice}")
        self.step, self.quantity = step, quantity


def fit(
    step: Callable[..., tuple[PyTree, Metrics]],
    state: PyTree,
    batch_at: Callable[[int], PyTree] | None = None,
    *,
    steps: int,
    batches: Callable[[int], Iterator[PyTree]] | None = None,
    frozen: Sequence[PyTree] = (),
    run: RunTarget = None,
    log: Log = Log(),
) -> PyTree:
    """Apply `step` until `steps` steps are done in total. If `run` has a checkpoint, resume from the last one.

    In the log, steps count from 1: the record `{"step": 1}` has the metrics of the first step, computed from batch 0.

    Args:
      step: a pure function `(state, batch, *frozen) -> (state, metrics)`. `fit` jits it and donates the state. A
        function that is jitted already is not changed. `metrics` is a dict of arrays, or a nested dict.
      state: the initial state. Its shapes, dtypes and shardings are also the template for restoring a checkpoint. It is
        copied first, so the caller's arrays stay valid.
      batch_at: step number (0, 1, ...) -> batch. Without `batch_at` and `batches` the batch is the step number, an
        int32 scalar.
      steps: the total number of steps of the run, including the steps before a resume.
      batches: first step number -> iterator over the batches from that step on. Use it for pipelines that prefetch.
      frozen: pytrees that the step reads but does not change. They are neither saved nor donated.
      run: where and how often the run is saved: a `SaveTo`, or only a directory.
      log: what is evaluated, logged and displayed.

    Returns:
      The state after step `steps`.

    Raises:
      NonFinite: a metric is NaN or infinite, or a state that should be saved contains NaN. The last checkpoint is kept.
      Interrupted: SIGINT or SIGTERM stopped the run, also in its last step. The state is saved first.
      UserError: the run already has more than `steps` steps, its log is not the one that its checkpoint records,
        `batches` ends too early, or a metric is named "step".
      StorageError: the run cannot be saved because the disk is full, or for a similar reason.

    Example:
        state = fit(train_step, state, batch_at, steps=1000, frozen=(model,),
                    run=SaveTo("runs/sae", config, every=100), log=Log(every=10, shown=("loss", "l0")))
    """
    if steps < 1:
        raise UserError(f"steps={steps}: give a positive number of steps")
    log = log.with_defaults(every=10, shown=("loss",), per_step={}, title="train", may_be_nan=())
    if log.to and run is None:
        raise UserError(f"Log(to={tuple(log.to)}) needs a run directory: give run=")
    step = step if hasattr(step, "lower") else jax.jit(step, donate_argnums=0)
    saving = SaveTo.of(run)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        if batch_at and isinstance(saving.run, (Path, str)) and not Path(saving.run).exists():
            jax.eval_shape(step, state, batch_at(0), *frozen)  # what the step refuses leaves no directory behind
        opened = stack.enter_context(saving.opened())
        state, start = _begin(opened, state, steps)
        reporter = stack.enter_context(_Reporter.opened(log, opened, start, steps))
        next_batch = _batches(batch_at, batches(start) if batches else None, steps)
        watch = stack.enter_context(watched(opened.directory if opened else None, start, steps))
        loop = _Loop(state, step, tuple(frozen), log, saving, opened, reporter, stop, watch)
        del state  # no other reference may remain, so that the memory of the old state is freed after each step
        return loop.run(next_batch, start, steps)


@dataclasses.dataclass
class _Loop:
    """The state of a run, and the settings that stay the same for all steps."""

    state: PyTree
    step: Callable[..., tuple[PyTree, Metrics]]
    frozen: tuple[PyTree, ...]
    log: Log
    saving: SaveTo
    opened: Run | None
    reporter: _Reporter
    stop: StopRequest
    watch: Watchdog

    def run(self, next_batch: Callable[[int], PyTree], start: int, steps: int) -> PyTree:
        """Run the steps `start + 1` to `steps`. Returns the final state."""
        evaluate, saved = self.log.evaluate, start
        for k in range(start + 1, steps + 1):
            self.state, metrics = self.step(self.state, next_batch(k), *self.frozen)
            if evaluate and (k == steps or _multiple(k, self.log.evaluate_every)):
                metrics = {**metrics, "eval": evaluate(self.state, *self.frozen)}
            self.reporter.add(k, metrics)
            halt = self.stop.agreed(exchange=k % self.reporter.every == 0 or k == steps)
            due = k == steps or halt or _multiple(k, self.saving.every)
            self.reporter.report(waiting=0 if due else _steps_ahead())
            self.reporter.view.step(k)
            self.watch.beat(k)
            if due and self.opened:
                self._save(k, self.opened)
                saved = k
            if halt:
                self._interrupt(saved if self.opened else k, steps)
        if self.stop.agreed(exchange=True):  # the signal came during the last save
            self._interrupt(steps, steps)
        return self.state

    def _interrupt(self, k: int, steps: int) -> None:
        raise Interrupted(k, steps, self.stop.signum or 15, self.opened.directory if self.opened else None)

    def _save(self, k: int, run: Run) -> None:
        _check_state(k, self.state, run)
        about = {**run.record, **self.reporter.mark()}
        keep, milestone_every = self.saving.keep, self.saving.milestone_every
        checkpoint.save(run.checkpoints, k, self.state, keep=keep, milestone_every=milestone_every, about=about)


def _multiple(k: int, every: int | None) -> bool:
    return every is not None and k % every == 0


def _batches(
    batch_at: Callable[[int], PyTree] | None, source: Iterator[PyTree] | None, steps: int
) -> Callable[[int], PyTree]:
    """A function from the step k = 1, 2, ... to its batch."""
    if source is not None:
        return lambda k: _next(source, k, steps)
    return lambda k: np.int32(k - 1) if batch_at is None else batch_at(k - 1)


def _steps_ahead() -> int:
    """How many steps the device may be ahead of the host.

    The devices that a CPU simulates share its threads. The collectives of two steps at once can wait for each other for
    ever there, and XLA then ends the process.
    """
    return 0 if jax.default_backend() == "cpu" and jax.local_device_count() > 1 else IN_FLIGHT


class _Reporter:
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
        self._clock = (span[0], time.monotonic())
        self._pending: deque[tuple[int, Metrics]] = deque()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, log: Log, run: Run | None, start: int, steps: int) -> Iterator[_Reporter]:
        """The reporter of steps `start + 1` to `steps`. Its files and its display are closed after the block."""
        with contextlib.ExitStack() as stack:
            paths = (run.metrics, run.timing) if run and jax.process_index() == 0 else ()
            files = tuple(stack.enter_context(contextlib.closing(MetricsLog(path))) for path in paths)
            writers = make_writers(log.to, run, read_log(run.metrics)) if log.to and files and run else []
            for writer in writers:
                stack.enter_context(contextlib.closing(writer))
            quiet = log.quiet or jax.process_index() != 0
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
                raise NonFinite(k, name, str(value), _advice(self._run, before_any_update=k == 1))
        return values


def _begin(run: Run | None, state: PyTree, steps: int) -> tuple[PyTree, int]:
    """The state to start from, and the number of steps that are done. Later records of the logs are removed."""
    if run is None:
        return jax.tree.map(_copied, state), 0
    done = checkpoint.latest(run.checkpoints)
    if done is None and run.parent is not None:
        return _begin_from(run.parent, run, state, steps)
    if done is not None and done > steps:
        raise UserError(
            f"{run.directory} has been trained for {done} steps, more than steps={steps}: ask for at least "
            f"{done}, or choose another run directory"
        )
    if done is None:
        state, start = jax.tree.map(_copied, state), 0
        recorded: dict[str, Any] = {}
    else:
        state, start = checkpoint.restore(run.checkpoints, jax.tree.map(_abstract, state))
        recorded = checkpoint.about(checkpoint.path_of(run.checkpoints, start))
    if jax.process_index() == 0:
        warn_of_other_versions(run.directory, start, recorded, run.record.get("versions", {}))
        _cut_logs(run, start, recorded)
    return state, start


def _cut_logs(run: Run, start: int, recorded: Mapping[str, Any]) -> None:
    """Remove what the logs have after the checkpoint of step `start`."""
    try:
        replace_log(run.metrics, log_up_to(run.metrics, start, recorded.get("log")))
    except LogError as error:
        raise UserError(
            f"{error}. Bring the file back to resume the run, or start a new run without it: "
            f"{how_to_branch(run.directory)}"
        ) from error
    truncate_log(run.timing, start)


def _begin_from(parent: Parent, run: Run, state: PyTree, steps: int) -> tuple[PyTree, int]:
    """Begin a run with the state and the log of its parent. They become its first checkpoint."""
    if parent.step >= steps:
        raise UserError(f"{parent} has the {steps} steps of this config already: ask for more steps")
    state = parent.state(jax.tree.map(_abstract, state))
    about = dict(run.record)
    if jax.process_index() == 0:
        content = parent.log()
        replace_log(run.metrics, content)
        about["log"] = mark_of(content)
    checkpoint.save(run.checkpoints, parent.step, state, about=about)
    return state, parent.step


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    """The shape, dtype and sharding of an initial leaf. Its buffer can then be freed during the restore."""
    x = x if isinstance(x, jax.Array) else _copied(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _copied(x: Any) -> jax.Array:
    """A copy that the loop may donate. It has no weak type, because a weak type would compile the step twice."""
    if is_key(x):
        return jnp.array(x, copy=True)
    dtype = x.dtype if hasattr(x, "dtype") else np.result_type(x)
    return jnp.array(x, dtype=jax.dtypes.canonicalize_dtype(dtype), copy=True)


def _next(source: Iterator[PyTree], k: int, steps: int) -> PyTree:
    try:
        return next(source)
    except StopIteration:
        raise UserError(f"the batches ended before step {k} of {steps}: repeat the data or take fewer steps") from None


def _to_host(x: Any) -> None:
    if isinstance(x, jax.Array):
        x.copy_to_host_async()


_nan_flags = jax.jit(lambda flat: {name: jnp.isnan(x).any() for name, x in flat.items()})


def _check_state(k: int, state: PyTree, run: Run) -> None:
    """Raise NonFinite if the state contains NaN. The metrics of this step may not show it yet."""
    flat = {name: x for name, x in flatten(state).items() if not is_key(x) and jnp.issubdtype(x.dtype, jnp.inexact)}
    bad = [name for name, flag in to_host(_nan_flags(flat)).items() if flag]
    if bad:
        raise NonFinite(k, "state " + ", ".join(bad[:5]), "NaN", _advice(run))


def _advice(run: Run | None, before_any_update: bool = False) -> str:
    if before_any_update:  # the metrics of step 1 are those of the initial state
        return "The state had not been updated yet, so look at the model's weights, the first batch and the loss"
    good = checkpoint.latest(run.checkpoints) if run else None
    if run is None or good is None:
        return "Nothing was saved; lower the learning rate or look at the batch of that step"
    return (
        f"The checkpoint of step {good} in {run.directory} is from before it; lower the learning rate or look at "
        "the batch"
    )
