"""Whether a process works on a run, and how the run ended. It is read from the heartbeat and the lock of the run.

life_of("runs/sae").state       "running", "hung", "silent", "killed", "finished", "stopped", ...
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUIET_STEP, QUIET_OTHER = 60.0, 900.0
"""Seconds without news after which a run counts as hung: between steps, and during a compilation, a save or an
evaluation. Between steps it is at least twenty steps."""
QUIET_HOST = 60.0
"""Seconds without a heartbeat after which a run on another host counts as silent. The file is written every 5 s."""


@dataclass(frozen=True)
class Life:
    """What is known about the process of a run.

    state: "starting" (before its first step), "running", "measuring" (the steps are done, and the process goes on),
      "hung" (the process lives and does nothing), "silent" (on another host, without a heartbeat), "killed",
      "finished", "stopped" (by a signal), "non-finite", "storage" (the disk is full or read-only), "refused", "failed",
      or "unknown" (no process, and no heartbeat).
    says: one sentence.
    process, host: of the process that works or worked on the run.
    """

    state: str
    says: str
    process: int | None = None
    host: str | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the run may still make steps by itself."""
        return self.state in ("starting", "running", "measuring", "hung", "silent")


def life_of(
    directory: Path, heartbeat: Mapping[str, Any] | None, *, steps_per_second: float | None = None, now: float
) -> Life:
    """The state of a run.

    Args:
      directory: the run directory.
      heartbeat: the content of its `heartbeat.json`; None if there is none.
      steps_per_second: the speed of its last steps.
      now: the time.
    """
    holder = _holder(directory / ".lock")
    if heartbeat is None:
        if holder is None:
            return Life("unknown", "no process works on it")
        return Life("starting", f"process {holder} works on it", holder, socket.gethostname())
    process, host = int(heartbeat["process"]), str(heartbeat["host"])
    here = host == socket.gethostname()
    if heartbeat["state"] != "running":
        return _ended(heartbeat, holder, process, host)
    if here and not _lives(process, heartbeat.get("process_began")):
        if holder not in (None, process):
            return Life("starting", f"process {holder} works on it", holder, host)
        return Life(
            "killed", f"killed after step {heartbeat['step']}, {ago(now - heartbeat['written'])}", process, host
        )
    silent = now - float(heartbeat["written"])
    if not here and silent > QUIET_HOST:
        says = f"silent for {length(silent)}: killed, or {host} cannot be reached"
        return Life("silent", says, process, host)
    return _alive(heartbeat, process, host, steps_per_second, now)


def _alive(heartbeat: Mapping[str, Any], process: int, host: str, speed: float | None, now: float) -> Life:
    doing, quiet = str(heartbeat["doing"]), now - float(heartbeat["step_time"])
    limit = max(QUIET_STEP, 20 / speed if speed else 0.0) if doing == "step" else QUIET_OTHER
    first = doing == "step" and heartbeat["step"] == heartbeat["first_step"]
    if quiet > (QUIET_OTHER if first else limit):
        during = {"step": "a step", "save": "a save", "evaluate": "an evaluation"}.get(doing, "the first step")
        says = f"no news for {length(quiet)}, during {during}: process {process} on {host} lives, and may hang"
        return Life("hung", says, process, host)
    if first or doing == "compile":
        return Life("starting", f"before its first step for {length(quiet)}", process, host)
    now_doing = {"save": "saves", "evaluate": "evaluates"}.get(doing, "runs")
    return Life("running", f"{now_doing}; last step {ago(quiet)}", process, host)


def _ended(heartbeat: Mapping[str, Any], holder: int | None, process: int, host: str) -> Life:
    state, message = str(heartbeat["state"]), str(heartbeat.get("message", ""))
    if holder is not None:
        if state == "finished" and holder == process:
            return Life("measuring", f"the steps are done; process {process} measures and writes", process, host)
        return Life("starting", f"process {holder} works on it", holder, host)
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(heartbeat["written"])))
    if state == "finished":
        return Life("finished", f"finished at {at}", process, host)
    return Life(state, f"{message or state} ({at})", process, host)


def _lives(process: int, began: Any) -> bool:
    """Whether a process of this host lives, and is not another one with the same number."""
    from jax_interp.core.process_times import process_began

    found = process_began(process)
    if found is not None or began is not None:
        return found is not None and found == began
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _holder(lock: Path) -> int | None:
    """The process of this machine that holds a lock, without touching the lock. None: there is none, or no /proc."""
    try:
        inode = lock.stat().st_ino
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    for line in lines:
        if len(line) >= 6 and line[1] == "FLOCK" and line[5].rpartition(":")[2] == str(inode) and line[4].isdecimal():
            return int(line[4])
    return None


def length(seconds: float) -> str:
    """A duration in one unit: `42 s`, `12 min`, `3.1 h`, `2.0 days`."""
    seconds = max(seconds, 0.0)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def ago(seconds: float) -> str:
    """`12 min ago`."""
    return f"{length(seconds)} ago"
