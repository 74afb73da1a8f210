"""Laws of everything that is saved: damage is refused or changes no value; malformed files are refused, not raised."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from generated import drawn
from saved_things import SAVED

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import DIGEST, json_digest
from jax_interp.core.tensor_files import read_tensors, write_tensors

SECONDS, BYTES = 30, 5 << 30
"""What reading a malformed file may take."""


@pytest.fixture(scope="module", params=sorted(SAVED))
def thing(request, tmp_path_factory):
    """(name, directory, directory of another thing of the same shape, what the reader returns)"""
    saved, one, other = SAVED[request.param], tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    saved.write(one, 0)
    saved.write(other, 1)
    return request.param, one, other, saved.read(one)


def same(one: Any, other: Any) -> bool:
    """Whether two results of a reader are the same to the bit."""
    a, b = jax.tree.leaves(one), jax.tree.leaves(other)
    if jax.tree.structure(one) != jax.tree.structure(other) or len(a) != len(b):
        return False
    return all(np.asarray(x).dtype == np.asarray(y).dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def files(directory: Path) -> list[Path]:
    return sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())


def random_file(rng: random.Random, directory: Path, *suffixes: str) -> Path:
    """A file of the directory. The relative path is drawn, so that the seed gives the same file everywhere."""
    return directory / rng.choice([path for path in files(directory) if not suffixes or path.suffix in suffixes])


def flip(rng: random.Random, directory: Path, other: Path) -> None:
    path = random_file(rng, directory)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_early(rng: random.Random, directory: Path, other: Path) -> None:
    """A bit of the first quarter of a file, where headers are."""
    path = random_file(rng, directory)
    data = bytearray(path.read_bytes())
    data[rng.randrange(-(-len(data) // 4))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def change_digit(rng: random.Random, directory: Path, other: Path) -> None:
    path = random_file(rng, directory)
    data = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(data) if 48 <= byte < 58]
    if places:
        place = rng.choice(places)
        data[place] = 48 + (data[place] - 48 + rng.randrange(1, 10)) % 10
    path.write_bytes(data)


def cut(rng: random.Random, directory: Path, other: Path) -> None:
    path = random_file(rng, directory)
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def lose(rng: random.Random, directory: Path, other: Path) -> None:
    random_file(rng, directory).unlink()


def exchange(rng: random.Random, directory: Path, other: Path) -> None:
    """One file of another thing. A thing of one file is then the other thing, which is no damage."""
    if len(files(directory)) > 1:
        path = random_file(rng, directory)
        shutil.copy(other / path.relative_to(directory), path)


DAMAGE = [flip, flip, flip, flip_early, flip_early, change_digit, change_digit, cut, lose, exchange]


@pytest.mark.hardening
def test_damage_is_refused_or_changes_no_value(thing, tmp_path, tally):
    name, one, other, whole = thing
    tried, silent = drawn(20, 150), []
    for seed in range(tried):
        rng, directory = random.Random(f"{name} {seed}"), tmp_path / str(seed)
        shutil.copytree(one, directory)
        damage = DAMAGE[seed % len(DAMAGE)]
        damage(rng, directory, other)
        with contextlib.suppress(UserError):
            if not same(SAVED[name].read(directory), whole):
                silent.append(f"{damage.__name__}, seed {seed}")
        shutil.rmtree(directory)
    tally("damage of saved things is refused or changes no value", tried=tried, broken=len(silent))
    assert not silent, f"{name}: other values without a word: {silent}"


def odd_value(rng: random.Random) -> Any:
    deep: Any = []
    for _ in range(rng.choice((5, 90, 200))):
        deep = [deep]
    return rng.choice(
        [None, True, -1, 0, 1, 7, 2**31, 2**62, 10**30, 1.5, -0.5, 1e308, float("nan"), float("inf"), "", "x", "../x",
         "/etc/passwd", "a\0b", "\ud800", "é" * 300, "float9", [], [1], ["x"], [[0]], [None], {},
         {"type": "TopK"}, deep]
    )  # fmt: skip


def mutate(rng: random.Random, value: Any) -> Any:
    """JSON values with one entry replaced, removed, added or doubled somewhere."""
    holders, stack = [], [value]
    while stack:
        item = stack.pop()
        if isinstance(item, (dict, list)):
            holders.append(item)
            stack += item.values() if isinstance(item, dict) else item[:5]
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    what = rng.choice(("replace", "replace", "replace", "remove", "add", "exchange", "whole"))
    if what == "whole":
        return odd_value(rng)
    if what == "add" or not keys:
        if isinstance(holder, dict):
            holder[rng.choice(("extra", "type", "format", ""))] = odd_value(rng)
        else:
            holder.append(odd_value(rng))
    elif what == "remove":
        del holder[rng.choice(keys)]
    elif what == "exchange":
        a, b = rng.choice(keys), rng.choice(keys)
        holder[a], holder[b] = holder[b], holder[a]
    else:
        key = rng.choice(keys)
        number = type(holder[key]) in (int, float)
        holder[key] = -holder[key] * rng.choice((1, 10**6)) if number and rng.random() < 0.5 else odd_value(rng)
    return value


def sealed(value: Any) -> Any:
    """The value with a digest that is right, as a program would write that makes the mistake."""
    if not isinstance(value, dict):
        return value
    rest = {name: item for name, item in value.items() if name != DIGEST}
    return rest | {DIGEST: json_digest(rest)}


def text_of(rng: random.Random, value: Any) -> bytes:
    text = json.dumps(value)
    if rng.random() < 0.1:
        text = re.sub(r"\{", '{"format": 1, "format": 2, ', text, count=1)
    return text.encode(errors="surrogatepass")


def malform_json(rng: random.Random, directory: Path) -> None:
    path = random_file(rng, directory, ".json")
    value = mutate(rng, json.loads(path.read_text()))
    path.write_bytes(text_of(rng, sealed(value)))


def malform_tensors(rng: random.Random, directory: Path) -> None:
    """Other strings in a header, or other arrays, with a digest that is right."""
    path = random_file(rng, directory, ".safetensors")
    file = read_tensors(path)
    arrays, header = dict(file.arrays), dict(file.header)
    name = rng.choice(sorted(arrays)) if arrays else None
    what = rng.choice(("string", "string", "string", "rename", "remove", "shape", "dtype", "add", "nan"))
    if what == "string" and header:
        key = rng.choice(sorted(header))
        try:
            header[key] = text_of(rng, mutate(rng, json.loads(header[key]))).decode(errors="replace")
        except ValueError:
            header[key] = "not the format"
    elif name is None or what == "add":
        arrays[rng.choice(("x", "activation.k", "", "é" * 200))] = np.ones(rng.choice(((), (0,), (3, 2))), np.float32)
    else:
        array = arrays.pop(name)
        if what == "rename":
            arrays[rng.choice(("x", "../x", "a\0b", name + "x"))] = array
        elif what == "shape":
            arrays[name] = array.reshape(rng.choice(((-1,), (1, -1), (array.size, 1), (*array.shape, 1))))
        elif what == "dtype":
            arrays[name] = array.astype(rng.choice(("float16", "float64", "int32", "bool", "complex64")))
        elif what == "nan":
            arrays[name] = np.full_like(array, np.nan if array.dtype.kind == "f" else 0)
    write_tensors(path, arrays, header)


def malform_header(rng: random.Random, directory: Path) -> None:
    """The header of a tensor file of another program: dtypes, shapes, offsets, lengths."""
    path = random_file(rng, directory, ".safetensors")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header["__metadata__"].pop(DIGEST, None)
    text = text_of(rng, mutate(rng, header))
    stated = rng.choice((len(text),) * 4 + (0, 3, len(text) + 9, 1 << 40, (1 << 64) - 1))
    path.write_bytes(struct.pack("<Q", stated) + text + body)


def malform_array(rng: random.Random, directory: Path) -> None:
    """The header of a .npy file: shapes, dtypes, objects, versions."""
    path = random_file(rng, directory, ".npy")
    data = path.read_bytes()
    length = struct.unpack("<H", data[8:10])[0]
    shape = rng.choice(("()", "(9,)", "(-1,)", "(1099511627776, 4194304)", "(3, 'x')", "[", "None", "(" * 3000))
    dtype = rng.choice(("'<f4'", "'|O'", "'<f9'", "[('a', '<f4')]", "'<M8[s]'", "3", "'>u2'"))
    text = f"{{'descr': {dtype}, 'fortran_order': {rng.choice(('False', 'True', '7'))}, 'shape': {shape}, }}\n".encode()
    version = rng.choice((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\t\t"))
    path.write_bytes(
        data[:6] + version + struct.pack("<H", rng.choice((len(text), 65535))) + text + data[10 + length :]
    )


def malform_file(rng: random.Random, directory: Path) -> None:
    """Something else in the place of a file."""
    path = random_file(rng, directory)
    data = path.read_bytes()
    path.unlink()
    match rng.randrange(8):
        case 0:
            path.mkdir()
        case 1:
            path.symlink_to(rng.choice(("/dev/null", "/dev/zero", path.name, "/nowhere")))
        case 2:
            with open(path, "wb") as file:
                file.truncate(6 << 30)
        case 3:
            path.write_bytes(rng.randbytes(rng.choice((0, 1, 7, 8, 9, 500))))
        case 4:
            path.write_bytes(
                rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b"PK\3\4" * 9))
            )
        case 5:
            path.write_bytes(b"\xef\xbb\xbf" + data)
        case 6:
            path.write_bytes(data + data)
        case 7:
            os.mkfifo(path)


MALFORM: dict[Callable[[random.Random, Path], None], tuple[str, ...]] = {
    malform_json: (".json",), malform_tensors: (".safetensors",), malform_header: (".safetensors",),
    malform_array: (".npy",), malform_file: (),
}  # fmt: skip


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError in the block after `SECONDS`."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_bytes() -> int:
    """The highest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.hardening
def test_a_malformed_file_is_refused(thing, tmp_path, tally):
    name, one, _, _ = thing
    ways = [way for way, suffixes in MALFORM.items() if not suffixes or any(p.suffix in suffixes for p in files(one))]
    peak = peak_bytes()  # of earlier tests of this process
    tried, broken = drawn(16, 120), []
    for seed in range(tried):
        rng, directory = random.Random(f"{name} {seed}"), tmp_path / str(seed)
        shutil.copytree(one, directory)
        way = ways[seed % len(ways)]
        way(rng, directory)
        try:
            with limited():
                SAVED[name].read(directory)
        except UserError as error:
            if "\n" in str(error) or len(str(error)) > 3000:
                broken.append(f"{way.__name__}, seed {seed}: a message of {len(str(error))} characters")
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            broken.append(f"{way.__name__}, seed {seed}: {error!r:.200} in {last.filename}:{last.lineno}")
        shutil.rmtree(directory)
    tally("a malformed file of a saved thing is refused or read, without a traceback", tried=tried, broken=len(broken))
    assert not broken, name + ": " + "\n".join(broken)
    assert (peak_bytes() - peak) < BYTES
