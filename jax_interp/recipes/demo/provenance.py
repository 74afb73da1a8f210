"""What made a report: command, config, commit, versions, machine."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path
from typing import Any

from jax_interp.core import config_json as configs
from jax_interp.training.runs import versions


def provenance(config: Any, command: str) -> dict[str, Any]:
    """Plain values for the last section of the report."""
    return {
        "command": command,
        "config": configs.dumps(config),
        "commit": commit(),
        "versions": versions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def commit() -> str | None:
    """The commit of the repository that the package runs from, with "+" if files differ from it; None where the
    package is installed."""
    repository = Path(__file__).resolve().parents[3]
    if not (repository / ".git").exists():
        return None
    git = ["git", "-C", str(repository)]
    try:
        outputs = [
            subprocess.run([*git, *arguments], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return outputs[0] + ("+" if outputs[1] else "")
