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
        kept = "No step" if safe is None else f"Step {safe}"
        how = (
            "was saved: the same command begins again" if safe is None else "is safe: the same command goes on from it"
        )
        found = cls(f"{cause}. {kept} of {run} {how}")
        found.step = safe
        return found
