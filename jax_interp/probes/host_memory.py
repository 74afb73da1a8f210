"""Whether an array fits into the memory of the host, asked before it is made."""

from __future__ import annotations

from pathlib import Path

from jax_interp.core.errors import UserError


def available_bytes() -> int | None:
    """The memory that this process can still get. None where the system does not tell."""
    found: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        pass
    try:  # a container may have less than its machine
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        found += [max(int(limit) - int(used), 0)] if limit != "max" else []
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def check_fits(size: int, what: str, remedy: str) -> None:
    """Raise UserError if `size` bytes are more than the memory that is left.

    Args:
      size: the bytes.
      what: what needs them.
      remedy: what to do instead.
    """
    free = available_bytes()
    if free is not None and size > free:
        raise UserError(
            f"{what} need {size / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB are free: {remedy}"
        )
