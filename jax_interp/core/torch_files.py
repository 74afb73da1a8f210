"""Files that `torch.save` wrote, read without torch and without running anything that stands in them.

    read_torch("ae.pt")["encoder.weight"]               a memory-mapped, read-only NumPy array

Three layouts are read. The first is a zip archive with a pickle (`data.pkl`) and one entry for each storage; torch 1.6
and later write it. The second is the older one: several pickles in a row, and then the storages. The third is a plain
pickle of tensors (`pickle.dump`), which may be compressed with gzip. The pickles are read as data
(`core.inert_pickle`): they may build tensors, numbers, strings, lists and dictionaries, and nothing else.

A tensor is a view of a storage. The view is compared with the size of the storage, and the size that the pickle states
with that of the file. Entries of archives are compared with their checksums.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.inert_pickle import read_pickle
from jax_interp.core.torch_tensors import BUILDERS, NAMED, REMEDY, Storage, Storages, TorchFileError, plain_values

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PIECE = 1 << 22
_UNPACKING = 20  # a gzip file that grows more than this is refused. Weights hardly shrink


def read_torch(path: Path | str, *, keep_unknown: bool = False, verify: bool = True) -> dict[str, Any]:
    """Read a torch file whose content has names, such as a state dict.

    Args:
      path: a file that `torch.save` or `pickle.dump` wrote. A name that ends in `.gz` is unpacked.
      keep_unknown: keep objects of unknown classes as `Inert` records. Nothing of them is run either way.
      verify: compare the entries of a zip archive with their checksums, which reads the whole file once.

    Returns:
      The entries by name: NumPy arrays, numbers, strings, bytes, None, and lists, tuples and dictionaries of them. A
      `torch.dtype` is its name, such as "float32". Arrays are views of the file where its layout allows it.

    Raises:
      UserError: the file is missing, damaged, or holds something else.
    """
    found = read_torch_value(path, keep_unknown=keep_unknown, verify=verify)
    if type(found) is not dict or not all(isinstance(name, str) for name in found):
        raise TorchFileError(f"{path} holds a {type(found).__name__}, not tensors with names; {REMEDY}")
    return found


def read_torch_value(path: Path | str, *, keep_unknown: bool = False, verify: bool = True) -> Any:
    """What a torch file holds, with or without names: a single tensor, a list, a dictionary.

    Args:
      path: as in `read_torch`.
      keep_unknown: as in `read_torch`.
      verify: as in `read_torch`.

    Raises:
      UserError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    try:
        return _read(path, str(path), keep_unknown, verify)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, RecursionError) as error:
        raise TorchFileError(f"cannot read {path} as a torch file: {' '.join(str(error).split())[:200]}") from error


def _read(path: Path, where: str, keep_unknown: bool, verify: bool) -> Any:
    if not path.is_file():
        raise TorchFileError(f"there is no file {where}")
    if path.stat().st_size == 0:
        raise TorchFileError(f"{where} is empty")
    data = np.asarray(np.memmap(path, np.uint8, mode="r"))
    if path.suffix == ".gz":
        data = _unpacked(data, where)
    start = bytes(data[: len(_LEGACY_MAGIC)])
    if start.startswith(b"PK"):
        return _read_archive(data, path, keep_unknown, verify)
    if start == _LEGACY_MAGIC:
        return _read_legacy(data, where, keep_unknown)
    if start[:1] == b"\x80":
        return _read_plain(data, where, keep_unknown)
    raise TorchFileError(f"{where} is not a torch file: it starts with {start[:4]!r}")


def _read_plain(data: np.ndarray, where: str, keep_unknown: bool) -> Any:
    """A pickle in which each storage is a torch file of its own, as `pickle.dump` writes tensors."""

    def load(content: Any) -> Any:
        if type(content) is not bytes or not content.startswith(_LEGACY_MAGIC):
            raise TorchFileError(f"{where} has a storage of an unknown layout; {REMEDY}")
        inner = _read_legacy(np.frombuffer(content, np.uint8), f"a storage in {where}", False, plain=False)
        if not isinstance(inner, Storage):
            raise TorchFileError(f"{where} has something else where a storage should be")
        return inner

    builders = {**BUILDERS, "torch.storage._load_from_bytes": load}
    found = read_pickle(io.BytesIO(data), where, builders, named=NAMED, keep_unknown=keep_unknown)
    return plain_values(found, where)


def _read_archive(data: np.ndarray, path: Path, keep_unknown: bool, verify: bool) -> Any:
    where = str(path)
    entries = _Archive(data, path, verify)
    pickle = io.BytesIO(entries.record("data.pkl").tobytes())
    order = bytes(entries.record("byteorder")) if entries.has("byteorder") else b"little"
    if order not in (b"little", b"big"):
        raise TorchFileError(f"{where} has the byte order {order[:20]!r}")
    storages = Storages(where, lambda key: entries.record(f"data/{key}"), swapped=order == b"big")
    found = read_pickle(pickle, where, BUILDERS, named=NAMED, persistent=storages.refer, keep_unknown=keep_unknown)
    return plain_values(found, where)


def _read_legacy(data: np.ndarray, where: str, keep_unknown: bool, plain: bool = True) -> Any:
    file = io.BytesIO(data)
    read_pickle(file, where, {})
    version, system = read_pickle(file, where, {}), read_pickle(file, where, {})
    if version != 1001 or not isinstance(system, dict):
        raise TorchFileError(f"{where} is a torch file of version {str(version)[:20]}, which is not known; {REMEDY}")
    starts: dict[str, np.ndarray] = {}
    storages = Storages(where, starts.__getitem__, swapped=system.get("little_endian") is False)
    found = read_pickle(file, where, BUILDERS, named=NAMED, persistent=storages.refer, keep_unknown=keep_unknown)
    keys, at = read_pickle(file, where, {}), file.tell()
    if type(keys) is not list or sorted(map(str, keys)) != sorted(storages.known):
        raise TorchFileError(f"{where} is damaged: its list of storages is not that of its tensors")
    for key in keys:
        (size,) = struct.unpack("<q", bytes(data[at : at + 8])) if at + 8 <= len(data) else (-1,)
        end = at + 8 + size * storages.known[key].itemsize
        if size < 0 or end > len(data):
            raise TorchFileError(f"{where} is cut short: a storage ends behind the file")
        starts[key], at = data[at + 8 : end], end
    return plain_values(found, where) if plain else found


def _unpacked(data: np.ndarray, where: str) -> np.ndarray:
    limit = max(1 << 26, _UNPACKING * len(data))
    try:
        with gzip.open(io.BytesIO(data)) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TorchFileError(f"{where} is not a whole gzip file: {error}") from error
    if len(content) > limit:
        raise TorchFileError(f"{where} grows more than {_UNPACKING} times when it is unpacked, which weights do not")
    return np.frombuffer(content, np.uint8)


class _Archive:
    """The entries of the zip archive of a torch file, which are never compressed."""

    def __init__(self, data: np.ndarray, path: Path, verify: bool):
        self.data, self.path, self.where = data, path, str(path)
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, OSError, struct.error, ValueError) as error:
            raise TorchFileError(f"{path} is not a whole zip archive: {error}") from error
        self.infos = {info.filename: info for info in infos}
        self.verify = verify and any(info.CRC for info in infos)  # torch can be told to write no checksums
        if len(self.infos) != len(infos):
            raise TorchFileError(f"{path} has two entries of one name")
        roots = [name.removesuffix("data.pkl") for name in self.infos if name.count("/") == 1]
        roots = [root for root in roots if root.endswith("/")]
        if len(roots) != 1:
            raise TorchFileError(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl")
        self.root = roots[0]
        if self.has("constants.pkl"):
            raise TorchFileError(f"{path} is a TorchScript program, not a file of tensors; {REMEDY}")

    def has(self, name: str) -> bool:
        return self.root + name in self.infos

    def record(self, name: str) -> np.ndarray:
        """The bytes of an entry, a view of the file."""
        if not self.has(name):
            raise TorchFileError(f"{self.where} is damaged: it has no entry {name!r}")
        info = self.infos[self.root + name]
        header = bytes(self.data[info.header_offset : info.header_offset + 30])
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise TorchFileError(f"{self.where} is damaged: the entry {name!r} has no header")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise TorchFileError(
                f"{self.where}: the entry {name!r} is compressed or encrypted, which torch.save does not do; {REMEDY}"
            )
        named, extra = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + named + extra
        content = self.data[start : start + info.file_size]
        if len(content) != info.file_size:
            raise TorchFileError(f"{self.where} is cut short in the entry {name!r}")
        if self.verify and self._checksum(start, info.file_size) != info.CRC:
            raise TorchFileError(f"{self.where} is damaged: the checksum of the entry {name!r} differs")
        return content

    def _checksum(self, start: int, size: int) -> int:
        """The checksum of a part of the file, read piece by piece: touching the mapped part would keep it in memory."""
        checksum = 0
        with open(self.path, "rb") as file:
            file.seek(start)
            while size > 0 and (piece := file.read(min(size, _PIECE))):
                checksum, size = zlib.crc32(piece, checksum), size - len(piece)
        return checksum
