"""Laws of every writer: a place that fails is one message and leaves nothing half-written; one writer at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from saved_things import SAVED

from jax_interp.core.errors import UserError
from jax_interp.core.locks import locked

LOCKS = {
    "dictionary": ".dictionary.lock", "crosscoder": ".dictionary.lock", "cross_layer_transcoder": ".dictionary.lock",
    "tuned_lens": ".tuned_lens.lock", "activation_store": ".lock", "token_store": ".lock", "prepared_text": ".lock",
    "model": ".m.lock",
}  # fmt: skip
"""The lock of each saved thing that consists of several files."""


def hidden(directory: Path) -> list[str]:
    return [str(path) for path in directory.rglob(".*")]


@pytest.mark.parametrize("name", sorted(SAVED))
def test_a_full_disk(name, tmp_path, monkeypatch):
    """The disk is full from the first flush on, from the second one on, and so on, until everything fits."""
    fsync, saved = os.fsync, SAVED[name]
    for fits in (0, 1, 2, 3, 4, 5, 10, 20, 100):
        directory, calls = tmp_path / str(fits), []
        directory.mkdir()

        def full(handle: int, calls: list[int] = calls, fits: int = fits) -> None:
            calls.append(handle)
            if len(calls) > fits:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        said = None
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                saved.write(directory, 0)
            except UserError as error:
                said = str(error)
        if said is None:
            break
        assert "No space left on device; free some space" in said
        assert "\n" not in said
        assert hidden(directory) == []
    assert fits > 0
    saved.read(directory)
    saved.write(tmp_path / "0", 0)  # what a failed write left does not stop the next one
    saved.read(tmp_path / "0")


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_a_second_writer_is_refused(name, tmp_path):
    with (
        locked(tmp_path / LOCKS[name], "it"),
        pytest.raises(UserError, match=f"process {os.getpid()} works on .*: wait for it, stop it, or choose another"),
    ):
        SAVED[name].write(tmp_path, 0)
    SAVED[name].write(tmp_path, 0)
    assert hidden(tmp_path) == []
