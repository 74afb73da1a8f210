"""The digests of the files that `save` wrote, in `digests.json` beside them. `load` compares them.

A directory of another program has no `digests.json`, and is read as it is.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from jax_interp.core.decisions import same_everywhere
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import is_file_name, read_bytes, read_json, write_json
from jax_interp.core.tensor_files import stored_digest

DIGESTS = "digests.json"
SAMPLES, SAMPLE_BYTES = 64, 2**16
"""What is read of each file of weights to compare it with that of another host: 4 MB, spread over the file."""


def write_digests(directory: Path) -> None:
    """Write the digests of all files in a directory."""
    files = sorted(path for path in directory.iterdir() if path.name != DIGESTS)
    write_json(directory / DIGESTS, {"files": {path.name: _digest(path) for path in files}})


def check_digests(directory: Path) -> None:
    """Compare the files of a directory with its `digests.json`, if it has one.

    Of a tensor file only the digest in its header is compared. `verify_tensors` compares that digest with the tensors.

    Raises:
      UserError: a file is missing, or was changed.
    """
    path = directory / DIGESTS
    if not path.is_file():
        return
    files = read_json(path).get("files")
    if not isinstance(files, dict) or not all(is_file_name(name) for name in files):
        raise UserError(f"{path} has no files, or a name in it is no file name: remove it, or save the model again")
    for name, digest in files.items():
        if not (directory / name).is_file():
            raise UserError(f"{directory} has no {name}, which {DIGESTS} names: save the model again")
        if _digest(directory / name) != digest:
            raise UserError(
                f"{directory / name} was changed since it was written (its digest differs): save the model again; or, "
                f"if you changed it on purpose, remove {path}"
            )


def _digest(file: Path) -> str | None:
    if file.suffix == ".safetensors":
        return stored_digest(file)
    return hashlib.sha256(read_bytes(file)).hexdigest()


def same_files_everywhere(directory: Path, weights: list[Path]) -> None:
    """Compare the files of a model between the processes of a run, each of which reads its own copy.

    Of files of weights, the size, the beginning and samples are compared. Other files are compared whole.

    Args:
      directory: the directory of the model.
      weights: the files of weights in it.

    Raises:
      UserError: a process has other files than process 0.
    """
    found = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        found.update(read_bytes(directory / name) if (directory / name).is_file() else b"-")
    for file in sorted(weights):
        found.update(f"{file.name} {file.stat().st_size}".encode())
        found.update(_samples(file))
    same_everywhere(f"the model in {directory.name!r:.200}", found.hexdigest())


def _samples(file: Path) -> bytes:
    """Parts of a file, from its beginning to its end."""
    last = max(0, file.stat().st_size - SAMPLE_BYTES)
    handle = os.open(file, os.O_RDONLY)
    try:
        starts = sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)})
        return b"".join(os.pread(handle, SAMPLE_BYTES, start) for start in starts)
    finally:
        os.close(handle)
