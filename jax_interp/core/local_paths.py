"""Paths of object stores are refused by name: `Path("gs://bucket/x")` is the local folder `gs:/bucket/x`."""

from __future__ import annotations

import re
from pathlib import Path

from jax_interp.core.errors import UserError

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def check_local(path: Path | str) -> None:
    """Raise UserError for a path on an object store, such as gs://bucket/x.

    A run directory or a store needs locks, renames and files that grow, which object stores do not have.
    """
    if found := _REMOTE.match(str(path)):
        scheme, rest = found[0].rstrip(":/"), str(path)[found.end() :].lstrip("/")
        raise UserError(
            f"{scheme}://{rest} is on an object store, where there are no locks and no renames: give a directory on a "
            "local or shared disk, and copy it to or from the object store with its own program (gcloud storage, aws)"
        )
