"""A run that starts from a checkpoint of another run: an extension (more steps) or a branch (other settings).

    jax-interp train-dictionary --from runs/a@2000 --run-dir runs/b --dictionary.steps 4000

The new run begins with the whole state of the parent: parameters, optimizer, random key, buffers, counters and the
number of steps that are done. It also begins with the parent's log up to that step. Everything else is of the new
config. A schedule goes on at the parent's step with the new total of steps, and the data goes on at that step, in the
order of the new seed. `parent.json` in the new run says where it came from.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.core.leaves import PyTree
from jax_interp.core.processes import from_first_process
from jax_interp.training import checkpoint
from jax_interp.training.metrics import LogError, log_up_to
from jax_interp.training.provenance import ResumeWarning


@dataclasses.dataclass(frozen=True)
class Parent:
    """The checkpoint that a run starts from.

    Args:
      run: the directory of the parent, as it was given.
      directory: the same directory as an absolute path.
      step: the step of the checkpoint.
      checkpoint: `checkpoint.identity` of the step.
      config_sha256: the digest of the parent's config; None if its checkpoint does not record one.
    """

    run: str
    directory: str
    step: int
    checkpoint: str
    config_sha256: str | None = None

    @property
    def _step(self) -> Path:
        return checkpoint.path_of(Path(self.directory) / "checkpoints", self.step)

    def __str__(self) -> str:
        return f"step {self.step:,} of {self.run}"

    def state(self, template: PyTree) -> PyTree:
        """The state at the checkpoint.

        Raises:
          UserError: the checkpoint was removed, replaced or damaged, or its state has other shapes than `template`.
        """
        from_first_process(self._check)
        try:
            return checkpoint.restore(self._step.parent, template, self.step)[0]
        except checkpoint.CheckpointMismatch as error:
            raise UserError(
                f"cannot start from {self}: its state does not fit this config: {'; '.join(error.problems)}. "
                "Only settings that keep the shapes of the state can differ from those of the parent"
            ) from error

    def _check(self) -> None:
        if not self._step.is_dir():
            raise UserError(f"cannot start from {self}: it was removed")
        if checkpoint.identity(self._step) != self.checkpoint:
            raise UserError(f"cannot start from {self}: it is not the checkpoint that was there at first")

    def about(self) -> dict[str, Any]:
        """What the checkpoint records beside its arrays."""
        return checkpoint.about(self._step)

    def log(self) -> bytes:
        """The parent's metrics log up to the step. If it is damaged: a warning, and an empty log."""
        try:
            mark = checkpoint.about(self._step).get("log")
            return log_up_to(Path(self.directory) / "metrics.jsonl", self.step, mark)
        except LogError as error:
            warnings.warn(f"{error}: the new run begins with an empty log", ResumeWarning, stacklevel=2)
            return b""


def run_and_step(source: Path | str) -> tuple[str, int | None]:
    """The two parts of `RUN@STEP`. The step is None for `RUN`, and for a directory that exists under the whole name."""
    run, at, step = str(source).rpartition("@")
    return (run, int(step)) if at and step.isdecimal() and not Path(source).is_dir() else (str(source), None)


def find_parent(source: Path | str) -> Parent:
    """The checkpoint that `RUN` (its last step) or `RUN@STEP` names.

    Raises:
      UserError: there is no such run or step, or the step is damaged.

    Example:
        find_parent("runs/a@2000").step == 2000
    """
    run, step = run_and_step(source)
    directory = Path(run).absolute()
    if not directory.is_dir():
        raise UserError(f"cannot start from {source}: there is no directory {run}; give RUN or RUN@STEP")
    present = checkpoint.steps(directory / "checkpoints")
    if not present:
        raise UserError(f"cannot start from {source}: {run} has no checkpoint")
    step = present[-1] if step is None else step
    if step not in present:
        kept = ", ".join(map(str, present))
        raise UserError(f"cannot start from {source}: {run} has no checkpoint of step {step}; it has {kept}")
    place = checkpoint.path_of(directory / "checkpoints", step)
    digest, about = checkpoint.identity(place), checkpoint.about(place)
    return Parent(run, str(directory), step, digest, about.get("config_sha256"))


def read_parent(run: Path) -> Parent | None:
    """The parent of a run, from its `parent.json`; None if the run began by itself.

    Raises:
      UserError: the file is damaged.
    """
    path = run / "parent.json"
    if not path.exists():
        return None
    try:
        return Parent(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path} does not describe a parent: {error}") from error


def write_parent(run: Path, parent: Parent) -> None:
    """Write `parent.json`."""
    write_json(run / "parent.json", dataclasses.asdict(parent))


def parent_of(run: Path, asked: Path | str | None, trained: bool) -> Parent | None:
    """The checkpoint that a run starts from, or has started from.

    Args:
      run: the run directory.
      asked: `RUN` or `RUN@STEP`. None: what `parent.json` says.
      trained: whether the run has checkpoints of its own.

    Raises:
      UserError: the run began in another way, `asked` is the run itself, or it does not exist.
    """
    before = read_parent(run)
    if asked is None:
        return before
    directory, step = run_and_step(asked)
    if Path(directory).resolve() == run.resolve():
        raise UserError(f"{run} cannot start from itself: choose another directory for the new run")
    if before is None and not trained:
        return find_parent(asked)
    same = before is not None and Path(before.directory).resolve() == Path(directory).resolve()
    if before is None or not same or step not in (None, before.step):
        began = "from its own first step" if before is None else f"from {before}"
        raise UserError(f"{run} holds a run that began {began}, not from {asked}: choose another run directory")
    return before  # also if the parent has been trained on since, or removed


def about_parent(parent: Parent | None) -> dict[str, Any]:
    """`{"parent": {"run": ..., "step": ...}}` for the figures of a run, or `{}` if the run began by itself."""
    return {} if parent is None else {"parent": {"run": parent.run, "step": parent.step}}
