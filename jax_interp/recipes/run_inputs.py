"""Fingerprints of the weights and the text of a run. A run can be resumed only with the same weights and text.

They are stored in `inputs.json` in the run directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import PyTree

from jax_interp.core.decisions import same_everywhere
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.data.text import Text
from jax_interp.training.fingerprint import fingerprints


def fingerprint(model: PyTree, text: Text | None = None) -> dict[str, str]:
    """Fingerprints of the weights of a model and, where one is given, of a text."""
    weights = {"weights": "".join(fingerprints(model).values())}
    return weights if text is None else weights | {"text": text.fingerprint()}


def same_inputs(directory: Path, now: Mapping[str, str], *, begins: bool = True) -> None:
    """Check that a resumed run has the same inputs as when it began.

    Args:
      directory: the run directory.
      now: the fingerprints of the current inputs.
      begins: whether to write the fingerprints if the directory has none.

    Raises:
      UserError: the run began with other weights or another text, or a process of the run has others than process 0.
    """
    for name, value in now.items():
        same_everywhere(f"the {name}", value)
    path = directory / "inputs.json"
    if not path.exists():
        if begins:
            write_json(path, now)
        return
    before = read_json(path)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"{directory} was begun with other {' and other '.join(changed)} (another Python's library, or new "
            "weights): bring those back, choose another run directory, or remove this one"
        )
