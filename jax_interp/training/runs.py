"""The directory of a run (POSIX: the lock is `flock`).

    config.json       the resolved config, from which the run can be started again
    versions.json     versions of Python, JAX and other packages that affect the bits, at the start of the run
    metrics.jsonl     the metrics log
    timing.jsonl      the speed of the steps
    checkpoints/      see checkpoint.py
    .lock             locked while a process works on the run

A directory belongs to one config. Only one process at a time can work on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jax_interp.core import config_json as configs
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.training.checkpoint import latest


@dataclasses.dataclass(frozen=True)
class Run:
    """An open run directory, with the paths of its files. `open_run` returns it."""

    directory: Path

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
def open_run(directory: Path | str, config: Any = None, *, may_differ: Sequence[str] = ()) -> Iterator[Run]:
    """Create a run directory or open an existing one, and hold its lock within the block.

    If the block raises a `UserError` before anything was trained, the stored config is restored. A refused call thus
    does not fix the config of the run.

    Args:
      directory: the directory. It must be new, empty, or contain a run.
      config: a frozen dataclass. It is stored, or compared with the stored config.
      may_differ: dotted keys of the config that may change when the run is resumed ("steps", "log_every").

    Yields:
      The open run.

    Raises:
      UserError: the directory contains something other than a run, another process works on it, or the stored config
        differs (the message names the keys).

    Example:
        with open_run("runs/sae", config, may_differ=("log_every",)) as run:
            state = fit(step, state, batch_at, steps=1000, run=SaveTo(run, every=100))
    """
    import jax

    run = Run(Path(directory).absolute())
    try:
        run.directory.mkdir(parents=True, exist_ok=True)
        present = {entry.name for entry in run.directory.iterdir()}
    except OSError as error:
        raise UserError(f"cannot use {run.directory} as a run directory: {error.strerror}") from error
    if present and not present & {".lock", run.config.name, run.metrics.name, run.checkpoints.name}:
        raise UserError(
            f"{run.directory} holds {', '.join(sorted(present)[:3])} and no run: choose another directory, or an empty "
            "one"
        )
    if jax.process_index() != 0:  # process 0 owns the directory; if it fails, the whole run fails
        yield run
        return
    with _locked(run.directory):
        before, trained = run.config.read_bytes() if run.config.exists() else None, _trained(run)
        if config is not None:
            _keep_config(run, before, config, may_differ)
        if not (run.directory / "versions.json").exists():
            atomic_write(run.directory / "versions.json", json.dumps(versions(), indent=2) + "\n")
        try:
            yield run
        except UserError:
            if _trained(run) == trained:
                run.config.unlink(missing_ok=True) if before is None else atomic_write(run.config, before)
            raise


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a kernel lock on a file. The kernel releases it when the process ends, even after a crash."""
    with open(directory / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"another process (pid {holder}) is working on {directory}: wait for it, stop it, "
                "or choose another directory"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _trained(run: Run) -> tuple[int | None, int]:
    """The progress of the run: its last checkpoint, and the length of its log."""
    return latest(run.checkpoints), run.metrics.stat().st_size if run.metrics.exists() else 0


def _keep_config(run: Run, before: bytes | None, config: Any, may_differ: Sequence[str]) -> None:
    text = configs.dumps(config)
    if before is not None:
        try:
            stored = configs.upgrade(json.loads(before))
        except ValueError as error:  # not JSON, or not text
            raise UserError(f"{run.config} is not JSON: {error}") from error
        changed = [
            line for line in configs.differences(stored, json.loads(text)) if line.partition(":")[0] not in may_differ
        ]
        if changed:
            raise UserError(
                f"{run.directory} holds a run of another config: {'; '.join(changed)}. "
                "Use that config to resume the run, or another directory to start a new run"
            )
    atomic_write(run.config, text)


def versions() -> dict[str, str]:
    """The versions of the software and hardware that can change the bits of a run."""
    import jax

    out = {
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": str(jax.device_count()),
        "machine": platform.machine(),
    }
    for package in ("jax_interp", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[package] = metadata.version(package)
    return out
