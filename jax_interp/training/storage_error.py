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
        safe, how = how_to_go_on(run)
        found = cls(f"{cause}. {how}")
        found.step = safe
        return found


def how_to_go_on(run: Path) -> tuple[int | None, str]:
    """The last step of a run that is on the disk, or None, and a sentence that says what the same command does."""
    try:
        safe = latest(run / "checkpoints")
    except OSError:
        safe = None
    if safe is None:
        return None, f"No step of {run} was saved: the same command begins again"
    return safe, f"Step {safe} of {run} is safe: the same command goes on from it"
