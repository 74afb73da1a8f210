"""The time that a cluster waits after SIGTERM before it kills: a run warns if its save takes longer.

A run that gets SIGTERM finishes its step and saves. The save of an earlier checkpoint says how long that takes. The
heartbeat of the run records it, so a resumed run can warn before its first step.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.core.processes import is_first_process
from jax_interp.training.heartbeat import FILE

VARIABLE = "JAX_INTERP_GRACE_SECONDS"


class GraceWarning(UserWarning):
    """A run may be killed before its state is saved."""


class Grace:
    """The seconds between SIGTERM and the kill, and the warning.

    Args:
      seconds: how long the cluster waits. None: what the environment says (`JAX_INTERP_GRACE_SECONDS`), or not known.
      directory: the run directory; None: nothing is saved.

    Raises:
      UserError: the number is not positive.
    """

    def __init__(self, seconds: float | None, directory: Path | None):
        text = os.environ.get(VARIABLE) if seconds is None else str(seconds)
        try:
            self.seconds = None if not text else float(text)
        except ValueError:
            raise UserError(f"{VARIABLE}={text!r} is not a number of seconds") from None
        if self.seconds is not None and not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise UserError(f"a grace period of {self.seconds:g} s: give the seconds from SIGTERM to the kill")
        self._directory, self._warned = directory, not is_first_process()
        if self.seconds is not None and directory is not None and (directory / FILE).exists():
            try:
                before = read_json(directory / FILE).get("save_seconds")
            except UserError:  # a damaged heartbeat: the next save is measured
                return
            if isinstance(before, (int, float)):
                self.saved(before)

    def saved(self, seconds: float) -> None:
        """Note how long a save took. Warns once if that is longer than the cluster waits."""
        if self.seconds is None or self._warned or seconds <= self.seconds:
            return
        self._warned = True
        warnings.warn(
            f"{self._directory}: a save takes {seconds:.0f} s, and the cluster waits {self.seconds:g} s after SIGTERM. "
            "The run would be killed before it has saved, and go on from its last regular checkpoint. Ask for a "
            "longer grace period, save to a faster disk, or save more often",
            GraceWarning,
            stacklevel=2,
        )
