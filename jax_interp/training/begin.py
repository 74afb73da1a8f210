"""Where a run starts: at its initial state, at its last checkpoint, or at the checkpoint of another run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import PyTree, is_key
from jax_interp.core.processes import barrier, from_first_process, is_first_process
from jax_interp.training import checkpoint
from jax_interp.training.metrics import LogError, log_up_to, mark_of, read_log, replace_log, truncate_log
from jax_interp.training.nonfinite import NonFinite
from jax_interp.training.parent import Parent
from jax_interp.training.provenance import how_to_branch, warn_of_other_versions
from jax_interp.training.rollback import FILE as HISTORY
from jax_interp.training.rollback import History, OnNan, RollBackWarning, read_history, write_history
from jax_interp.training.runs import Run


def begin(run: Run | None, state: PyTree, steps: int) -> tuple[PyTree, int, History]:
    """The state to start from, the number of steps that are done, and the roll-backs that the run has had.

    Later records of the logs are removed.

    Args:
      run: the open run; None: nothing is saved.
      state: the initial state, which is also the template of a checkpoint.
      steps: the total number of steps.

    Raises:
      UserError: the run has more steps, or its files are not those of its checkpoint.
    """
    if run is None:
        return jax.tree.map(_copied, state), 0, History()
    done = from_first_process(lambda: checkpoint.latest(run.checkpoints))
    if done is None and run.parent is not None:
        return _begin_from(run.parent, run, state, steps)
    if done is not None and done > steps:
        raise UserError(
            f"{run.directory} has been trained for {done} steps, more than steps={steps}: ask for at least "
            f"{done}, or choose another run directory"
        )
    recorded: dict[str, Any] = {}
    if done is None:
        state, start, history = jax.tree.map(_copied, state), 0, History()
        if is_first_process():
            (run.directory / HISTORY).unlink(missing_ok=True)  # of a run whose checkpoints were removed
    else:
        state, start = checkpoint.restore(run.checkpoints, jax.tree.map(abstract, state))
        recorded = from_first_process(lambda: checkpoint.about(checkpoint.path_of(run.checkpoints, start)))
        history = read_history(run.directory, start, recorded)
    if is_first_process():
        warn_of_other_versions(run.directory, start, recorded, run.record.get("versions", {}))
        _cut_logs(run, start, recorded)
    return state, start, history


def return_to_checkpoint(
    run: Run, template: PyTree, history: History, bad: NonFinite, policy: OnNan
) -> tuple[PyTree, int, History]:
    """Go back to the last checkpoint after a NaN. Every process calls this and decides the same.

    Args:
      run: the open run.
      template: shapes, dtypes and shardings of the state.
      history: the roll-backs before this one.
      bad: what was not finite. Metrics are the same in every process.
      policy: what is different after the checkpoint.

    Returns:
      As `begin`.
    """
    state, to = checkpoint.restore(run.checkpoints, template)
    history = history.after(bad, to, policy)
    if is_first_process():
        recorded = checkpoint.about(checkpoint.path_of(run.checkpoints, to))
        # The history is written first. If the process is killed in between, the resume cuts the logs.
        write_history(run.directory, history, [one for one in read_log(run.metrics) if one["step"] > to])
        _cut_logs(run, to, recorded)
        warnings.warn(f"{run.directory}: {history.describe_last(policy)}", RollBackWarning, stacklevel=2)
    barrier(f"roll-back {len(history.records)}")
    return state, to, history


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


def _begin_from(parent: Parent, run: Run, state: PyTree, steps: int) -> tuple[PyTree, int, History]:
    """Begin a run with the state, the log and the roll-backs of its parent. They become its first checkpoint."""
    if parent.step >= steps:
        raise UserError(f"{parent} has the {steps} steps of this config already: ask for more steps")
    state = parent.state(jax.tree.map(abstract, state))
    inherited = from_first_process(lambda: parent.about().get("rollbacks", []))
    history = History.from_json(inherited, str(parent))
    about = dict(run.record) | ({"rollbacks": inherited} if inherited else {})
    if is_first_process():
        if history.records:
            write_history(run.directory, history)
        content = parent.log()
        replace_log(run.metrics, content)
        about["log"] = mark_of(content)
    checkpoint.save(run.checkpoints, parent.step, state, about=about)
    return state, parent.step, history


def abstract(x: Any) -> jax.ShapeDtypeStruct:
    """The shape, dtype and sharding of an initial leaf. Its buffer can then be freed during the restore."""
    x = x if isinstance(x, jax.Array) else _copied(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _copied(x: Any) -> jax.Array:
    """A copy that the loop may donate. It has no weak type, because a weak type would compile the step twice."""
    if is_key(x):
        return jnp.array(x, copy=True)
    dtype = x.dtype if hasattr(x, "dtype") else np.result_type(x)
    return jnp.array(x, dtype=jax.dtypes.canonicalize_dtype(dtype), copy=True)
