"""The training loop: one jitted step again and again, with a log, checkpoints and an exact resume.

    def step(state, batch, *frozen): ...  -> (state, metrics)     pure; metrics is a (nested) dict of arrays
    state = fit(step, state, batch_at, steps=1000, run="runs/sae", config=config, checkpoint_every=100)

The law it keeps: a run killed at any moment and started again with the same call ends with the same bits, in the state
and in `metrics.jsonl`, as one that was never interrupted. It holds because the loop keeps nothing of its own: whatever
the next step depends on is in the state or is a function of the step's number.
"""

from __future__ import annotations

import contextlib
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
from jax_interp.training import checkpoint
from jax_interp.training.metrics import MetricsLog, plain, truncate_log
from jax_interp.training.progress import progress
from jax_interp.training.runs import Run, open_run
from jax_interp.training.signals import stop_requests

IN_FLIGHT = 2  # steps handed to the device before the metrics of an earlier one are looked at


class NonFinite(RuntimeError):
    """A metric or a leaf of the state became NaN or infinite. `step` and `quantity` say which and when."""

    def __init__(self, step: int, quantity: str, value: str, advice: str):
        super().__init__(f"step {step}: {quantity} is {value}. {advice}")
        self.step, self.quantity = step, quantity


class Interrupted(Exception):
    """The run was asked to stop by a signal and has saved itself. `exit_code` is the shell's custom, 128 + signal."""

    def __init__(self, step: int, steps: int, signum: int, directory: Path | None):
        how = f"saved in {directory}; run the same command again to go on from there" if directory else "not saved"
        super().__init__(f"stopped after step {step} of {steps}, {how}")
        self.step, self.signum, self.exit_code = step, signum, 128 + signum


def fit(
    step: Callable[..., tuple[PyTree, Mapping[str, Any]]],
    state: PyTree,
    batch_at: Callable[[int], Any] | None = None,
    *,
    steps: int,
    run: Run | Path | str | None = None,
    config: Any = None,
    batches: Callable[[int], Iterator[Any]] | None = None,
    frozen: Sequence[PyTree] = (),
    checkpoint_every: int | None = None,
    keep: int = 3,
    milestone_every: int | None = None,
    log_every: int = 10,
    evaluate: Callable[..., Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    per_step: Mapping[str, float] | None = None,
    shown: Sequence[str] = ("loss",),
    title: str = "train",
    quiet: bool = False,
    may_lack: Sequence[str] = (),
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> PyTree:
    """Run `step` until `steps` steps are done in all, from the last checkpoint of `run` if it has one.

    step       `(state, batch, *frozen) -> (state, metrics)`. Jitted here with the state donated, or as given if it is
               jitted already. `frozen` are pytrees it needs that do not change: not saved, not donated.
    state      the initial state, and the template (shapes, dtypes, shardings) a checkpoint is restored into. It is
               copied first, so the caller's arrays stay valid.
    batch_at   step number (0, 1, ...) -> batch; or `batches`: first step number -> iterator of the batches from there
               on, for pipelines that prefetch. With neither the batch is the step number, an int32 scalar.
    run        directory (or an open `Run`) for checkpoints, `metrics.jsonl` and `timing.jsonl`. None: nothing is saved.
    config     frozen dataclass, stored with the run; a resume with another one is refused. An open `Run` has one: it
               stands, and this is not looked at.
    checkpoint_every  also after the last step and on a signal. `keep` and `milestone_every` as in `checkpoint.save`.
    evaluate   `(state, *frozen) -> metrics`, called every `evaluate_every` steps and at the end, logged as
               `eval.<name>`.
    per_step   amounts a step handles, for rates: {"tokens": 4096} gives "tokens/s" in `timing.jsonl` and the display.
    shown      metrics on the progress display; rates are added.
    may_lack   beginnings of names of metrics whose NaN says that there is no such figure (any more): null in the log.
    on_log     receives every record that goes to `metrics.jsonl`.

    Step k is the k-th from 1: `{"step": 1}` in the log is the metrics of the first step, computed with batch 0.
    Raises `NonFinite` at the first NaN or infinity in a metric, or a NaN in a state about to be saved: the last
    checkpoint stays as it is. Raises `Interrupted` after SIGINT or SIGTERM, the state saved. Raises `UserError` where
    `run` is past `steps` already.
    """
    _check_positive(steps=steps, log_every=log_every, checkpoint_every=checkpoint_every, evaluate_every=evaluate_every)
    rates, frozen = dict(per_step or {}), tuple(frozen)
    step = step if hasattr(step, "lower") else jax.jit(step, donate_argnums=0)
    with contextlib.ExitStack() as stack:
        if run is not None and not isinstance(run, Run):
            run = stack.enter_context(open_run(run, config))
        state, start = _begin(run, state, steps)
        writer = run is not None and jax.process_index() == 0
        log = stack.enter_context(contextlib.closing(MetricsLog(run.metrics))) if run and writer else None
        timing = stack.enter_context(contextlib.closing(MetricsLog(run.timing))) if run and writer else None
        quiet = quiet or jax.process_index() != 0
        if start and run and not quiet:
            print(f"{title}: going on after step {start} of {steps}, from {run.directory}", file=sys.stderr)
        view = stack.enter_context(
            contextlib.closing(progress(title, start, steps, [*shown, *(f"{name}/s" for name in rates)], quiet=quiet))
        )
        stop = stack.enter_context(stop_requests())
        source = batches(start) if batches else None
        pending: deque[tuple[int, Any]] = deque()
        saved, clock = start, (start, time.monotonic())

        def settle(k: int, metrics: Any) -> None:
            """Look at the metrics of step `k`, which may wait for the device: stop if not finite, log, show."""
            nonlocal clock
            values = plain(jax.device_get(metrics))
            if "step" in values:
                raise UserError("a metric cannot be named 'step': the log has the step's number under that name")
            for name, value in values.items():
                if isinstance(value, float) and np.isnan(value) and name.startswith(tuple(may_lack)):
                    values[name] = None
                elif not isinstance(value, str) and value is not None and not np.all(np.isfinite(value)):
                    raise NonFinite(k, name, str(value), _advice(run))
            if k % log_every and k != steps and not any(name.startswith("eval.") for name in values):
                return
            now = time.monotonic()
            speed = (k - clock[0]) / max(now - clock[1], 1e-9)
            clock = (k, now)
            timed = {"steps/s": speed} | {f"{name}/s": amount * speed for name, amount in rates.items()}
            record = {"step": k} | values
            if log and timing:
                log.write(record)
                timing.write({"step": k, "time": time.time()} | timed)
            view.values(k, record | timed)
            if on_log:
                on_log(record)

        for k in range(start + 1, steps + 1):
            batch = _next(source, k, steps) if source else batch_at(k - 1) if batch_at else np.int32(k - 1)
            state, metrics = step(state, batch, *frozen)
            if evaluate and (k == steps or (evaluate_every and k % evaluate_every == 0)):
                metrics = {**metrics, "eval": evaluate(state, *frozen)}
            jax.tree.map(_to_host, metrics)
            pending.append((k, metrics))
            halt = _agreed(stop, k, log_every)
            due = bool(checkpoint_every and k % checkpoint_every == 0) or k == steps or halt
            while len(pending) > (0 if due else IN_FLIGHT):
                settle(*pending.popleft())
            view.step(k)
            if due and run:
                _check_state(k, state, run)
                if log:
                    log.sync()
                checkpoint.save(run.checkpoints, k, state, keep=keep, milestone_every=milestone_every)
                saved = k
            if halt and k < steps:
                raise Interrupted(saved if run else k, steps, stop.signum or 15, run.directory if run else None)
        return state


def _begin(run: Run | None, state: PyTree, steps: int) -> tuple[PyTree, int]:
    """The state to start from and how many steps it has behind it; the logs are cut back to there."""
    start = 0
    if run and (done := checkpoint.latest(run.checkpoints)) is not None:
        if done > steps:
            raise UserError(
                f"{run.directory} has been trained for {done} steps, more than steps={steps}: ask for at least "
                f"{done}, or choose another run directory"
            )
        state, start = checkpoint.restore(run.checkpoints, jax.tree.map(_abstract, state))
    else:
        state = jax.tree.map(_own, state)
    if run and jax.process_index() == 0:
        truncate_log(run.metrics, start)
        truncate_log(run.timing, start)
    return state, start


def _abstract(x: Any) -> Any:
    """What a checkpoint needs to know of an initial leaf, so that its buffer can be freed while restoring."""
    x = x if isinstance(x, jax.Array) else _own(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _own(x: Any) -> jax.Array:
    """A copy that the loop may donate, of a fixed type: a Python number's weak one would compile the step twice."""
    if is_key(x):
        return jnp.array(x, copy=True)
    return jnp.array(
        x, dtype=jax.dtypes.canonicalize_dtype(x.dtype if hasattr(x, "dtype") else np.result_type(x)), copy=True
    )


def _next(source: Iterator[Any], k: int, steps: int) -> Any:
    try:
        return next(source)
    except StopIteration:
        raise UserError(f"the batches ended before step {k} of {steps}: repeat the data or take fewer steps") from None


def _to_host(x: Any) -> None:
    if isinstance(x, jax.Array):
        x.copy_to_host_async()


def _agreed(stop: Any, k: int, every: int) -> bool:
    """Whether to stop after step `k`. In a multi-host run all agree, asking every `every` steps."""
    if jax.process_count() == 1:
        return bool(stop)
    from jax.experimental import multihost_utils

    return k % every == 0 and bool(np.any(multihost_utils.process_allgather(np.asarray(bool(stop)))))


_nan_flags = jax.jit(lambda flat: {name: jnp.isnan(x).any() for name, x in flat.items()})


def _check_state(k: int, state: PyTree, run: Run) -> None:
    """Refuse to save a state that holds NaN: the step's metrics may not have met it yet."""
    flat = {name: x for name, x in flatten(state).items() if not is_key(x) and jnp.issubdtype(x.dtype, jnp.inexact)}
    bad = [name for name, flag in jax.device_get(_nan_flags(flat)).items() if flag]
    if bad:
        raise NonFinite(k, "state " + ", ".join(bad[:5]), "NaN", _advice(run))


def _advice(run: Run | None) -> str:
    good = checkpoint.latest(run.checkpoints) if run else None
    if run is None or good is None:
        return "Nothing was saved; lower the learning rate or look at the batch of that step"
    return (
        f"The checkpoint of step {good} in {run.directory} is from before it; lower the learning rate or look at "
        "the batch"
    )


def _check_positive(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            never = ", or None for never" if name in ("checkpoint_every", "evaluate_every") else ""
            raise UserError(f"{name}={value}: give a positive number of steps{never}")
