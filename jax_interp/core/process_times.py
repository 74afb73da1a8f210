"""When a process began: with its number, this names one process for as long as the machine runs."""

from __future__ import annotations


def process_began(process: int) -> str | None:
    """When a process of this machine began, as text that is only compared. None: there is none, or no /proc.

    Args:
      process: the number of the process.
    """
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return None
