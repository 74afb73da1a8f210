"""The training loop: a jitted step that is repeated, with a log, checkpoints and exact resume.

    def step(state, batch, *frozen): ...  -> (state, metrics)     pure; metrics is a (nested) dict of arrays
    state = fit(step, state, batch_at, steps=1000, run=SaveTo("runs/sae", config, every=100))

If a run is killed and started again with the same call, its final state and its `metrics.jsonl` are bit for bit those
of an uninterrupted run. This holds because the next step depends only on the state and on the number of the step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import PyTree
from jax_interp.core.processes import from_first_process
from jax_interp.training import checkpoint
from jax_interp.training.begin import abstract, begin, return_to_checkpoint
from jax_interp.training.grace import Grace
from jax_interp.training.heartbeat import Heartbeat, heartbeat
from jax_interp.training.interrupt import Interrupted, StopRequest, stop_requests
from jax_interp.training.metrics import mark_of
from jax_interp.training.nonfinite import NonFinite, check_state
from jax_interp.training.options import Log, RunTarget, SaveTo
from jax_interp.training.profiling import Profiler, check_range
from jax_interp.training.reporter import Metrics, Reporter
from jax_interp.training.rollback import History, check_policy, takes_rate_scale
from jax_interp.training.runs import Run
from jax_interp.training.watchdog import Watchdog, watched

IN_FLIGHT = 2  # how many steps the device may be ahead of the metrics that the host has read


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
        `OnNan("lower-rate")` needs a step with a parameter `rate_scale`, a factor of its learning rate.
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
        With `Log(on_nan=...)` the run returns to it instead (see rollback.py).
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
    saving = SaveTo.of(run)
    check_policy(log.on_nan, step, log.title or "", saved=saving.run is not None)
    check_range(log.profile, steps, saved=saving.run is not None)
    step = step if hasattr(step, "lower") else jax.jit(step, donate_argnums=0)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        if batch_at and isinstance(saving.run, (Path, str)) and not Path(saving.run).exists():
            jax.eval_shape(step, state, batch_at(0), *frozen)  # what the step refuses leaves no directory behind
        opened = stack.enter_context(saving.opened())
        state, start, history = begin(opened, state, steps)
        about = {"title": log.title, "first_step": start, "steps": steps, "per_step": dict(log.per_step or {})}
        grace = Grace(log.grace, opened and opened.directory)  # it reads the heartbeat before the run
        heart = stack.enter_context(heartbeat(opened and opened.directory, about))
        template = jax.tree.map(abstract, state)
        watch = stack.enter_context(watched(opened.directory if opened else None, start, steps))
        profiler = Profiler(opened and opened.directory, log.profile, start, log.quiet)
        stack.callback(profiler.close)
        loop = _Loop(
            state, step, tuple(frozen), log, saving, opened, stop, heart, watch, profiler, grace, history, template
        )
        del state  # no other reference may remain, so that the memory of the old state is freed after each step
        loop.prepare(start)
        while True:
            bad = loop.attempt(batch_at, batches, start, steps)
            if bad is None:
                return loop.state
            start = loop.roll_back(bad)


@dataclasses.dataclass
class _Loop:
    """The state of a run, and the settings that stay the same for all steps."""

    state: PyTree
    step: Callable[..., tuple[PyTree, Metrics]]
    frozen: tuple[PyTree, ...]
    log: Log
    saving: SaveTo
    opened: Run | None
    stop: StopRequest
    heart: Heartbeat
    watch: Watchdog
    profiler: Profiler
    grace: Grace
    history: History
    template: PyTree

    def prepare(self, start: int) -> None:
        """Save the initial state if a NaN may lead back to it."""
        if self.log.on_nan.do == "stop" or not self.opened:
            return
        checkpoints = self.opened.checkpoints
        if from_first_process(lambda: checkpoint.latest(checkpoints)) is None:
            about = {**self.opened.record, "log": mark_of(b"")}
            checkpoint.save(self.opened.checkpoints, start, self.state, about=about)

    def attempt(
        self,
        batch_at: Callable[[int], PyTree] | None,
        batches: Callable[[int], Iterator[PyTree]] | None,
        start: int,
        steps: int,
    ) -> NonFinite | None:
        """Run the steps `start + 1` to `steps`. Returns None at the end, or the NaN that leads to a roll-back."""
        first = self.history.batch(start + 1)
        next_batch = _batches(batch_at, batches(first) if batches else None, self.history, steps)
        with Reporter.opened(self.log, self.opened, start, steps) as reporter:
            try:
                self._run(reporter, next_batch, start, steps)
                return None
            except NonFinite as error:
                policy = self.log.on_nan
                if policy.do == "stop" or not self.opened:
                    raise
                if len(self.history.records) >= policy.times:
                    count = len(self.history.records)
                    raise error.after(f"The run has had {count} roll-backs, and may have {policy.times}. ") from None
                return error.with_traceback(None)  # whose frames hold the state

    def roll_back(self, bad: NonFinite) -> int:
        """Return to the last checkpoint. Returns its step."""
        assert self.opened is not None
        self.state = None
        self.state, start, self.history = return_to_checkpoint(
            self.opened, self.template, self.history, bad, self.log.on_nan
        )
        return start

    def _run(self, reporter: Reporter, next_batch: Callable[[int], PyTree], start: int, steps: int) -> None:
        evaluate, saved = self.log.evaluate, start
        scaled = takes_rate_scale(self.step) and (
            self.log.on_nan.do == "lower-rate" or self.history.rate_scale(steps) != 1
        )
        for k in range(start + 1, steps + 1):
            scale = {"rate_scale": np.float32(self.history.rate_scale(k))} if scaled else {}
            self.profiler.before(k, self.state)
            self.state, metrics = self.step(self.state, next_batch(k), *self.frozen, **scale)
            self.profiler.after(k, self.state)
            if evaluate and (k == steps or _multiple(k, self.log.evaluate_every)):
                self.heart.beat(reporter.checked, "evaluate")
                metrics = {**metrics, "eval": evaluate(self.state, *self.frozen)}
            reporter.add(k, metrics)
            halt = self.stop.agreed(exchange=k % reporter.every == 0 or k == steps)
            due = k == steps or halt or _multiple(k, self.saving.every)
            reporter.report(waiting=0 if due else _steps_ahead())
            self.heart.beat(reporter.checked, "step")
            reporter.view.step(k)
            self.watch.beat(k)
            if due and self.opened:
                self.heart.beat(k, "save")
                self._save(k, self.opened, reporter)
                self.watch.saved(k)
                self.heart.beat(k, "step")
                saved = k
            if halt:
                self._interrupt(saved if self.opened else k, steps)
        if self.stop.agreed(exchange=True):  # the signal came during the last save
            self._interrupt(steps, steps)

    def _interrupt(self, k: int, steps: int) -> None:
        raise Interrupted(k, steps, self.stop.signum or 15, self.opened.directory if self.opened else None)

    def _save(self, k: int, run: Run, reporter: Reporter) -> None:
        began = time.monotonic()
        check_state(k, self.state, run)
        led = self.history.until(k).to_json()
        about = {**run.record, **reporter.mark(), **({"rollbacks": led} if led else {})}
        keep, milestone_every = self.saving.keep, self.saving.milestone_every
        checkpoint.save(run.checkpoints, k, self.state, keep=keep, milestone_every=milestone_every, about=about)
        seconds = time.monotonic() - began
        self.heart.saved(seconds)
        self.grace.saved(seconds)


def _multiple(k: int, every: int | None) -> bool:
    return every is not None and k % every == 0


def _batches(
    batch_at: Callable[[int], PyTree] | None, source: Iterator[PyTree] | None, history: History, steps: int
) -> Callable[[int], PyTree]:
    """A function from the step k = 1, 2, ... to its batch."""
    if source is not None:
        return lambda k: _next(source, k, steps)
    return lambda k: np.int32(history.batch(k)) if batch_at is None else batch_at(history.batch(k))


def _steps_ahead() -> int:
    """How many steps the device may be ahead of the host.

    The devices that a CPU simulates share its threads. The collectives of two steps at once can wait for each other for
    ever there, and XLA then ends the process.
    """
    return 0 if jax.default_backend() == "cpu" and jax.local_device_count() > 1 else IN_FLIGHT


def _next(source: Iterator[PyTree], k: int, steps: int) -> PyTree:
    try:
        return next(source)
    except StopIteration:
        raise UserError(f"the batches ended before step {k} of {steps}: repeat the data or take fewer steps") from None
