"""What a run was begun with besides its config, by fingerprint: a run goes on with the weights and the text that it
began with, or not at all. `inputs.json` in its directory holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.core.tensor_files import read_json
from jax_interp.data.text import Text
from jax_interp.training.fingerprint import fingerprints


def fingerprint(model: Any, text: Text | None = None) -> dict[str, str]:
    """Of the weights, and of the text where there is one."""
    weights = {"weights": "".join(fingerprints(model).values())}
    return weights if text is None else weights | {"text": text.fingerprint()}


def same_inputs(directory: Path, now: Mapping[str, str], *, begins: bool = True) -> None:
    """Raise UserError unless the run in `directory` began with what there is `now`. Where nothing is written there the
    run `begins` with it; otherwise there is nothing to compare."""
    path = directory / "inputs.json"
    if not path.exists():
        if begins:
            atomic_write(path, json.dumps(dict(now), indent=2) + "\n")
        return
    before = read_json(path)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"{directory} was begun with other {' and other '.join(changed)} (another Python's library, or new "
            "weights): bring those back, choose another run directory, or remove this one"
        )
