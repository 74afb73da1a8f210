"""What a checkpoint records about its run, and how a resumed run is compared with it.

    {"config": {...}, "config_sha256": "...", "log": {"bytes": 5120, "sha256": "..."}, "versions": {"jax": ...}}

A checkpoint belongs to one config and to the log up to its step. A resume under another config, or beside another log,
would mix two runs. It is refused. Other versions, devices or numbers of cores change the last bits at most, so they are
a warning. A checkpoint of an earlier version has no record, and is accepted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.training import checkpoint


class ResumeWarning(UserWarning):
    """A resumed run may end with other bits than an uninterrupted run."""


def versions() -> dict[str, str]:
    """The versions of the software and hardware that can change the bits of a run."""
    import jax

    out = {
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "device": jax.local_devices()[0].device_kind,
        "devices": str(jax.device_count()),
        "machine": platform.machine(),
        "cores": str(_cores()),
    }
    for package in ("jax_interp", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[package] = metadata.version(package)
    return out


def _cores() -> int:
    """The cores that this process may use. XLA divides some sums among them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def config_sha256(config: Any) -> str:
    """The digest of a config, given as JSON values."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def record(config: Any, now: Mapping[str, str]) -> dict[str, Any]:
    """The part of a record that is the same for all checkpoints of one process.

    Args:
      config: the config as JSON values; None if the run has none.
      now: the result of `versions()`.
    """
    about: dict[str, Any] = {"versions": dict(now)}
    return about if config is None else about | {"config": config, "config_sha256": config_sha256(config)}


def check_config(directory: Path, config: Any, may_differ: Sequence[str]) -> None:
    """Compare a config with the config that the last checkpoint records.

    Args:
      directory: the run directory.
      config: the config as JSON values.
      may_differ: dotted keys that may differ.

    Raises:
      UserError: another field differs. The message has its old and its new value.
    """
    step, recorded = last_record(directory / "checkpoints")
    if "config" not in recorded:
        return
    changed = changes(recorded["config"], config, may_differ)
    if changed:
        raise UserError(
            f"the checkpoint of step {step} in {directory} was trained with another config "
            f"({directory / 'config.json'} was edited or removed): {'; '.join(changed)}. Put the old values back to "
            f"resume the run. To go on from this step with the new values: {how_to_branch(directory)}"
        )


def how_to_branch(directory: Path) -> str:
    """How a new run starts from the checkpoints of another one: the options of the commands."""
    return f"--from {directory} --run-dir NEW"


def changes(old: Any, new: Any, may_differ: Sequence[str]) -> list[str]:
    """The fields in which two configs differ, without those that may differ. `old` may be of an earlier version."""
    found = configs.differences(configs.upgrade(old), new)
    return [line for line in found if line.partition(":")[0] not in may_differ]


def last_record(checkpoints: Path) -> tuple[int | None, dict[str, Any]]:
    """The last step with an undamaged description, and its record. `(None, {})` if there is no such step."""
    for step in reversed(checkpoint.steps(checkpoints)):
        with contextlib.suppress(checkpoint.CorruptCheckpoint):
            return step, checkpoint.about(checkpoint.path_of(checkpoints, step))
    return None, {}


def warn_of_other_versions(directory: Path, step: int, recorded: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """One warning if the checkpoint was written by other versions or on another machine."""
    before = recorded.get("versions", {})
    changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        warnings.warn(
            f"{directory} goes on from step {step} with {', '.join(changed)}: its bits may differ from those of an "
            "uninterrupted run",
            ResumeWarning,
            stacklevel=2,
        )
