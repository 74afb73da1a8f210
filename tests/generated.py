"""How many cases the generated laws try."""

from __future__ import annotations

import os


def drawn(few: int, many: int) -> int:
    """`few` cases in `make test`, `many` in `make hardening`."""
    return many if os.environ.get("JAX_INTERP_HARDENING") == "1" else few
