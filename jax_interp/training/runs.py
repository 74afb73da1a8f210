"""The directory of a run.

    config.json       the resolved config, from which the run can be started again
    versions.json     versions of Python, JAX and other packages that affect the bits, at the start of the run
    metrics.jsonl     the metrics log
    heartbeat.json    how far the loop is, and how it ended, see heartbeat.py
    rollbacks.json    returns to a checkpoint after a NaN, if there were any, see rollback.py
    timing.jsonl      the speed of the steps
    checkpoints/      see checkpoint.py; each records its config and the log, see provenance.py
    parent.json       the checkpoint that the run started from, if it started from another run, see parent.py
    .lock             locked while a process works on the run

A directory belongs to one config. Only one process at a time can work on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_interp.core import config_json as configs
from jax_interp.core.atomic_write import WriteError, atomic_write, make_directory
from jax_interp.core.decisions import same_everywhere
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.core.local_paths import check_local
from jax_interp.core.locks import locked
from jax_interp.core.processes import from_first_process, is_first_process
from jax_interp.training.checkpoint import latest, remove_unfinished
from jax_interp.training.parent import Parent, parent_of, write_parent
from jax_interp.training.provenance import changes, check_config, config_sha256, how_to_branch, record, versions
from jax_interp.training.storage_error import StorageError

_REFUSED_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EIO}
_REFUSED_WRITES |= {errno.EACCES, errno.EPERM}


@dataclasses.dataclass(frozen=True)
class Run:
    """An open run directory, with the paths of its files. `open_run` returns it."""

    directory: Path
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What every checkpoint records about the run, see provenance.py."""
    parent: Parent | None = None
    """The checkpoint that the run starts from if it has no checkpoint of its own."""

    @property
    def config(self) -> Path:
        return self.directory / "config.json"

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        return self.directory / "timing.jsonl"


@contextlib.contextmanager
def open_run(
    directory: Path | str, config: Any = None, *, may_differ: Sequence[str] = (), parent: Path | str | None = None
) -> Iterator[Run]:
    """Create a run directory or open an existing one, and hold its lock within the block.

    If the block raises a `UserError` before anything was trained, the stored config is restored. A refused call thus
    does not fix the config of the run.

    Args:
      directory: the directory. It must be new, empty, or contain a run.
      config: a frozen dataclass. It is stored, or compared with the stored config and with that of the checkpoints.
      may_differ: dotted keys of the config that may change when the run is resumed ("steps", "log_every").
      parent: `RUN` or `RUN@STEP`, the checkpoint that a new run starts from, see parent.py. When the run is resumed, it
        may be left out.

    Yields:
      The open run.

    Raises:
      UserError: the directory contains something other than a run, another process works on it, the stored config or
        that of the last checkpoint differs (the message names the keys), or the run has another parent.
      StorageError: within the block a file cannot be written because the disk is full, or for a similar reason.

    Example:
        with open_run("runs/sae", config, may_differ=("log_every",)) as run:
            state = fit(step, state, batch_at, steps=1000, run=SaveTo(run, every=100))
    """
    check_local(directory)
    run = Run(Path(directory).absolute())
    same_everywhere("the config", "" if config is None else config_sha256(configs.to_json(config)))
    if not is_first_process():  # process 0 owns the directory, which may be on a disk of its own
        yield dataclasses.replace(run, parent=_parent_of_first(None))
        return
    make_directory(run.directory)
    try:
        present = {entry.name for entry in run.directory.iterdir()}
    except OSError as error:
        raise UserError(f"cannot use {run.directory} as a run directory: {error.strerror}") from error
    if present and not present & {".lock", run.config.name, run.metrics.name, run.checkpoints.name}:
        raise UserError(
            f"{run.directory} holds {', '.join(sorted(present)[:3])} and no run: choose another directory, or an empty "
            "one"
        )
    lock = locked(run.directory / ".lock", f"the run {run.directory}", keep=True)
    try:
        with lock, _kept_if_refused(run):
            begun = _begin(run, config, may_differ, parent)
            _parent_of_first(begun.parent)
            yield begun
    except WriteError as error:
        raise StorageError.of_run(run.directory, error) from error
    except OSError as error:
        if error.errno not in _REFUSED_WRITES:
            raise
        raise StorageError.of_run(run.directory, error) from error


def _parent_of_first(parent: Parent | None) -> Parent | None:
    """The parent of the run, which process 0 has found."""
    found = from_first_process(lambda: None if parent is None else dataclasses.asdict(parent))
    return None if found is None else Parent(**found)


def _begin(run: Run, config: Any, may_differ: Sequence[str], parent: Path | str | None) -> Run:
    """Check what is asked against what the directory holds, and write the files that describe the run."""
    remove_unfinished(run.checkpoints)
    found = parent_of(run.directory, parent, latest(run.checkpoints) is not None)
    if config is not None:
        _keep_config(run, config, may_differ)
    now = versions()
    if not (run.directory / "versions.json").exists():
        write_json(run.directory / "versions.json", now)
    if found is not None:
        write_parent(run.directory, found)
    values = None if config is None else configs.to_json(config)
    return dataclasses.replace(run, record=record(values, now), parent=found)


@contextlib.contextmanager
def _kept_if_refused(run: Run) -> Iterator[None]:
    """Restore the files that describe the run if the block raises a UserError before anything was trained."""
    files = (run.config, run.directory / "parent.json")
    before, trained = [file.read_bytes() if file.exists() else None for file in files], _trained(run)
    try:
        yield
    except UserError:
        if _trained(run) == trained:
            for file, content in zip(files, before):
                file.unlink(missing_ok=True) if content is None else atomic_write(file, content)
        raise


def _trained(run: Run) -> tuple[int | None, int]:
    """The progress of the run: its last checkpoint, and the length of its log."""
    return latest(run.checkpoints), run.metrics.stat().st_size if run.metrics.exists() else 0


def _keep_config(run: Run, config: Any, may_differ: Sequence[str]) -> None:
    """Store the config, unless the run has another one."""
    values = configs.to_json(config)
    if run.config.exists():
        changed = changes(read_json(run.config, nonfinite=True), values, may_differ)
        if changed:
            branch = "" if latest(run.checkpoints) is None else f". To go on from it, {how_to_branch(run.directory)}"
            raise UserError(
                f"{run.directory} holds a run of another config: {'; '.join(changed)}. "
                f"Use that config to resume the run, or another directory to start a new run{branch}"
            )
    check_config(run.directory, values, may_differ)
    configs.save(config, run.config)
