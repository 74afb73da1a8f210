"""What a run says when the operating system does not let it write: the disk is full, the place is read-only, ..."""

from __future__ import annotations

from pathlib import Path

from jax_interp.core.atomic_write import WriteError
from jax_interp.training.checkpoint import latest


class StorageError(WriteError):
    """A run stopped because a file could not be written. Its last checkpoint is whole. `step` is its step, or None."""

    step: int | None = None

    @classmethod
    def of_run(cls, run: Path, error: OSError | WriteError) -> StorageError:
        """The message for an error within a run: what cannot be written, which step is safe, and how to go on."""
        cause = error if isinstance(error, WriteError) else WriteError.of(error.filename or run, error)
        try:
            safe = latest(run / "checkpoints")
        except OSError:
            safe = None
        found = cls(f"{cause}. {safe_step(run, safe)}")
        found.step = safe
        return found


def safe_step(run: Path, step: int | None) -> str:
    """A sentence that says what the same command does.

    Args:
      run: the run directory.
      step: the last step that is on the disk; None: there is none.
    """
    if step is None:
        return f"No step of {run} was saved: the same command begins again"
    return f"Step {step} of {run} is safe: the same command goes on from it"
