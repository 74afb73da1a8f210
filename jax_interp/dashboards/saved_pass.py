"""The saved state of a pass over a text: how far it has come, and the statistics of the text up to there.

The state is saved together with what it belongs to: fingerprints of the model, the units and the statistics, and a
digest of the text that has been read. A call with another model, other units, other options or another text is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, PyTree

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import json_digest, parse_json
from jax_interp.core.leaves import flatten, unflatten
from jax_interp.core.locks import locked
from jax_interp.core.processes import arrays_from_first_process, from_first_process, to_host
from jax_interp.core.tensor_files import read_tensors, write_tensors
from jax_interp.training.fingerprint import fingerprints
from jax_interp.training.interrupt import StopRequest, stop_requests

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Cursor:
    """How far a pass has come.

    Args:
      batches: the number of batches that have been read.
      sequences: the number of sequences in them.
      kept: the number of kept positions.
      digest: a digest of their tokens and masks. Empty if nothing is saved.
    """

    batches: int = 0
    sequences: int = 0
    kept: int = 0
    digest: str = ""

    def after(self, tokens: Int[np.ndarray, "seq pos"], keep: Bool[np.ndarray, "seq pos"], with_digest: bool) -> Cursor:
        """The cursor after one more batch."""
        digest = ""
        if with_digest:
            text = hashlib.sha256(f"{self.digest} {tokens.shape} ".encode())
            text.update(np.ascontiguousarray(tokens))
            text.update(np.ascontiguousarray(keep))
            digest = text.hexdigest()
        return Cursor(self.batches + 1, self.sequences + len(tokens), self.kept + int(keep.sum()), digest)


class SavedPass:
    """The saved state of one pass. `saved_pass` makes it.

    Attributes:
      directory: the directory.
      cursor: how far the saved pass has come. 0 batches if nothing is saved.
      stop: a request to stop.
    """

    def __init__(self, directory: Path, identity: dict[str, str], every: float, stop: StopRequest):
        self.directory, self.stop, self.cursor = directory, stop, Cursor()
        self._identity, self._every, self._arrays = identity, every, {}
        self._next = time.monotonic() + every
        self.cursor = Cursor(**from_first_process(lambda: dataclasses.asdict(self._read(identity))))

    def _read(self, identity: dict[str, str]) -> Cursor:
        """How far the saved pass has come. Its arrays are read too."""
        if not self.path.exists():
            return Cursor()
        file = read_tensors(self.path)
        try:
            about = parse_json(file.header.get("pass", "{}"), f"the header of {self.path}")
            if about["format"] != FORMAT:
                raise ValueError("it is of another version")
            of, cursor = dict(about["identity"]), Cursor(**about["cursor"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{self.path} is not a pass that can be read here ({error}): remove it") from error
        if other := [name for name, value in identity.items() if of.get(name) != value]:
            raise UserError(
                f"{self.path} is the state of a pass with other {' and '.join(other)}: give another directory, or "
                "remove the file to begin anew"
            )
        self._arrays = file.arrays
        return cursor

    @property
    def path(self) -> Path:
        """The file. One rename replaces it, so it is always whole."""
        return self.directory / "pass.safetensors"

    def is_due(self) -> tuple[bool, bool]:
        """(whether to save now, whether to stop then). Every process of a run asks, and gets the same answer."""
        stops = self.stop.agreed(exchange=True)
        return stops or from_first_process(lambda: time.monotonic() >= self._next), stops

    def save(self, cursor: Cursor, states: dict[str, PyTree]) -> None:
        """Save the states of the text up to `cursor`."""
        arrays = {name: np.asarray(value) for name, value in flatten(to_host(states)).items()}
        about = {"format": FORMAT, "identity": self._identity, "cursor": dataclasses.asdict(cursor)}
        write_tensors(self.path, arrays, {"pass": json.dumps(about)})
        self._next = time.monotonic() + self._every

    def states(self, reached: Cursor, shapes: dict[str, PyTree]) -> dict[str, PyTree]:
        """The saved states.

        Args:
          reached: the cursor of the text that was read again, at the same batch.
          shapes: what the states must look like.

        Raises:
          UserError: the text is another one, or the states have other shapes.
        """
        if reached != self.cursor:
            raise UserError(
                f"the text is not the one of the pass in {self.path}: its first {reached.batches} batches differ; give "
                "the same batches in the same order, or another directory"
            )
        wanted = _kinds(flatten(shapes))
        if not from_first_process(lambda: wanted == _kinds(self._arrays)):
            raise UserError(f"{self.path} is of another version: remove it to begin anew")
        arrays = arrays_from_first_process(self._arrays, wanted)
        states = unflatten(shapes, {name: jnp.asarray(value) for name, value in arrays.items()})
        self._arrays = {}
        return states


def _kinds(arrays: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and the dtype of each array."""
    return {name: (value.shape, str(value.dtype)) for name, value in arrays.items()}


@contextlib.contextmanager
def saved_pass(
    directory: Path | str, scores: PyTree, model: PyTree, statistics: dict[str, Any], every: float
) -> Iterator[SavedPass]:
    """Hold the directory of a pass within the block, and read the state that an earlier call saved there.

    Args:
      directory: created if it is missing.
      scores: the score function, a pytree.
      model: its first argument.
      statistics: the statistics by name.
      every: seconds between two saves.

    Raises:
      UserError: the state belongs to another pass, the file is damaged, or another process works on it.
    """
    directory = Path(directory)
    with locked(directory / ".pass.lock", f"the pass in {directory}"), stop_requests() as stop:
        yield SavedPass(directory, _identity(scores, model, statistics), every, stop)


def _identity(scores: PyTree, model: PyTree, statistics: dict[str, Any]) -> dict[str, str]:
    """Short texts that say what a pass computes. Weights are compared by fingerprints."""
    structure = lambda tree: re.sub(r" at 0x[0-9a-f]+", "", str(jax.tree.structure(tree)))
    arrays = lambda tree: json_digest(fingerprints(jax.tree.map(jnp.asarray, tree)))
    return {
        "model": arrays(model),
        "units": json_digest({"structure": structure(scores), "arrays": arrays(scores)}),
        "statistics": json_digest({"structure": structure(statistics), "arrays": arrays(statistics)}),
    }
