"""Torch files are read without torch: what they hold arrives bit for bit, and nothing that they name is run."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import pickletools
import random
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.inert_pickle import Inert
from jax_interp.core.torch_files import read_torch
from tests.generated import drawn
from tests.torch_archives import (
    STORAGES,
    Call,
    Name,
    Object,
    Tensor,
    pickled,
    save,
    save_legacy,
    save_plain,
    write_archive,
)

STATE = {
    "W": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.asarray([1.5, -2], ml_dtypes.bfloat16),
    "k": np.asarray(7, np.int32),
    "settings": {"activation": "TopK", "k": 3, 5: [1, 2.5, None, True, ("x", b"\x00\xff")]},
}


def dtypes_of(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def same(found, expected) -> bool:
    if isinstance(expected, np.ndarray):
        alike = isinstance(found, np.ndarray) and (found.dtype, found.shape) == (expected.dtype, expected.shape)
        return alike and found.tobytes() == expected.tobytes()
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[name], value) for name, value in expected.items())
    if isinstance(expected, (list, tuple)):
        return type(found) is type(expected) and all(map(same, found, expected)) and len(found) == len(expected)
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("write", [save, save_legacy])
def test_a_state_dict_is_read_as_it_was_written(write, tmp_path):
    found = read_torch(write(tmp_path / "ae.pt", STATE))
    assert same(found, STATE)
    assert not found["W"].flags.writeable  # a view of the file


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("name", STORAGES)
def test_every_dtype_in_both_byte_orders(name, byteorder, tmp_path):
    array = np.asarray(np.random.default_rng(0).normal(size=(3, 5)) * 50, dtypes_of(name))
    assert same(read_torch(save(tmp_path / "x.pt", {"x": array}, byteorder=byteorder)), {"x": array})


@pytest.mark.parametrize("write", [save, save_legacy])
def test_tensors_are_views_of_shared_storages(write, tmp_path):
    storage = np.arange(24, dtype=np.float32)
    whole = storage.reshape(4, 6)
    views = {
        "whole": (Tensor(storage, 0, (4, 6), (6, 1)), whole),
        "transposed": (Tensor(storage, 0, (6, 4), (1, 6)), whole.T),
        "part": (Tensor(storage, 7, (2, 3), (6, 2)), whole[1:3, 1:6:2]),
        "repeated": (Tensor(storage, 5, (3, 2), (0, 1)), np.tile(storage[5:7], (3, 1))),
        "number": (Tensor(storage, 23, (), ()), np.asarray(storage[23])),
        "empty": (Tensor(storage, 24, (0, 3), (3, 1)), np.zeros((0, 3), np.float32)),
    }
    path = write(tmp_path / "x.pt", {name: stored for name, (stored, _) in views.items()})
    assert path.stat().st_size < 4000
    assert same(read_torch(path), {name: expected for name, (_, expected) in views.items()})


@pytest.mark.parametrize("name", ["x.pkl", "x.pkl.gz"])
def test_pickles_without_an_archive_hold_their_storages(name, tmp_path):
    assert same(read_torch(save_plain(tmp_path / name, STATE)), STATE)


class _Trap:
    """An object whose pickle runs a command where it is loaded by `pickle`."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def hostile(mark: Path) -> dict[str, bytes]:
    """Pickles that would make the directory `mark`, by each of the instructions that can call."""
    text = str(mark).encode()
    unicode = b"X" + len(text).to_bytes(4, "little") + text
    name, module = b"\x8c\x05mkdir", b"\x8c\x05posix"
    entry = b"\x80\x02}X\x01\x00\x00\x00x"  # a dictionary with the key "x"
    return {
        "GLOBAL and REDUCE": entry + b"cposix\nmkdir\n" + unicode + b"\x85Rs.",
        "STACK_GLOBAL and REDUCE": entry + module + name + b"\x93" + unicode + b"\x85Rs.",
        "GLOBAL and NEWOBJ": entry + b"cposix\nmkdir\n" + unicode + b"\x85\x81s.",
        "NEWOBJ_EX": entry + b"cposix\nmkdir\n" + unicode + b"\x85}\x92s.",
        "INST": entry + b"(" + unicode + b"iposix\nmkdir\ns.",
        "OBJ": entry + b"(cposix\nmkdir\n" + unicode + b"os.",
        "EXT1": entry + b"\x82\x01" + unicode + b"\x85Rs.",
        "EXT2": entry + b"\x83\x01\x00" + unicode + b"\x85Rs.",
        "EXT4": entry + b"\x84\x01\x00\x00\x00" + unicode + b"\x85Rs.",
        "BUILD": entry + b"cbuiltins\nobject\n)\x81}X\x0c\x00\x00\x00__setstate__cposix\nmkdir\nsbs.",
        "a name of builtins": entry + b"c__builtin__\neval\n" + unicode + b"\x85Rs.",
        "a dotted name": entry + b"\x8c\x05torch\x8c\x0f_utils.os.mkdir\x93" + unicode + b"\x85Rs.",
        "a storage class called": entry + b"ctorch\nFloatStorage\n" + unicode + b"\x85Rs.",
        "a persistent id that is a call": entry + b"cposix\nmkdir\n" + unicode + b"\x85RQs.",
        "a persistent id of text": entry + b"Pposix mkdir\ns.",
        "deep in a list": entry + b"]" * 30 + b"cposix\nmkdir\n" + unicode + b"\x85R" + b"a" * 30 + b"s.",
        "pickle's own": pickle.dumps({"x": _Trap(mark)}),
        "pickle's own, protocol 0": pickle.dumps({"x": _Trap(mark)}, protocol=0),
    }


@pytest.mark.parametrize("keep_unknown", [False, True])
@pytest.mark.parametrize("layout", ["archive", "plain", "behind the magic number"])
@pytest.mark.parametrize("how", list(hostile(Path("mark"))))
def test_nothing_that_a_file_asks_for_is_run(how, layout, keep_unknown, tmp_path):
    mark = tmp_path / "mark"
    content = hostile(mark)[how]
    path = tmp_path / "ae.pt"
    if layout == "archive":
        write_archive(path, content, {})
    else:
        path.write_bytes((save_legacy(path, {}).read_bytes()[:15] if layout != "plain" else b"") + content)
    try:
        found = read_torch(path, keep_unknown=keep_unknown)
    except UserError as error:
        message = str(error)
    else:
        assert keep_unknown  # what stood there is then kept as a record
        assert any(word in repr(found) for word in ("mkdir", "eval", "builtins.object", "FloatStorage"))
        message = ""
    assert not mark.exists()
    if layout == "archive" and not keep_unknown:
        named = ("mkdir", "eval", "object", "EXT", "FloatStorage", "PERSID", "posix", "'c'")
        assert any(word in message for word in named), message


def test_a_loader_of_pickles_would_have_run_it(tmp_path):
    """The trap of the test above works. The program is read, not run: it names a function, then calls it."""
    program = [(op.name, argument) for op, argument, _ in pickletools.genops(hostile(tmp_path)["GLOBAL and REDUCE"])]
    named, called = program.index(("GLOBAL", "posix mkdir")), program.index(("REDUCE", None))
    assert named < called
    assert program[-1] == ("STOP", None)
    assert str(tmp_path) in [argument for _, argument in program[named:called]]


def test_objects_of_unknown_classes_are_kept_as_records(tmp_path):
    settings = {"d": 4, "device": Call(Name("torch", "device"), ("cuda",)), "dtype": Name("torch", "float32")}
    path = save(tmp_path / "x.pt", {"cfg": Object("sae_training.config.Runner", settings), "W": STATE["W"]})
    with pytest.raises(UserError, match=r"sae_training\.config\.Runner"):
        read_torch(path)
    found = read_torch(path, keep_unknown=True)
    device = Inert("torch.device", ("cuda",))
    assert found["cfg"] == Inert("sae_training.config.Runner", (), {"d": 4, "device": device, "dtype": "float32"})
    assert same(found["W"], STATE["W"])


LIES = {
    "the view leaves its storage": lambda s: Tensor(s, 0, (3, 4), (4, 1)),
    "the offset is behind the end": lambda s: Tensor(s, 9, (2,), (1,)),
    "the offset is negative": lambda s: Tensor(s, -1, (2,), (1,)),
    "a stride is negative": lambda s: Tensor(s, 9, (2,), (-1,)),
    "a size is negative": lambda s: Tensor(s, 0, (-2, -5), (5, 1)),
    "a size is no number": lambda s: Tensor(s, 0, (None,), (1,)),
    "a size is a truth value": lambda s: Tensor(s, 0, (True,), (1,)),
    "more sizes than strides": lambda s: Tensor(s, 0, (2, 5), (1,)),
    "the product of the sizes is enormous": lambda s: Tensor(s, 0, (1 << 59, 1 << 59), (0, 0)),
    "one entry is repeated without end": lambda s: Tensor(s, 0, (1 << 40,), (0,)),
    "the file states a larger storage": lambda s: Tensor(s, 0, (11,), (1,), entries=11),
    "the file states an enormous storage": lambda s: Tensor(s, 0, (1 << 50,), (1,), entries=1 << 50),
    "the file states a smaller storage": lambda s: Tensor(s, 0, (2,), (1,), entries=2),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_view_that_is_not_in_its_storage_is_refused(lie, tmp_path):
    path = save(tmp_path / "x.pt", {"x": LIES[lie](np.arange(10, dtype=np.float32))})
    with pytest.raises(UserError):
        read_torch(path)


def test_other_damage_is_refused_with_what_stands_there(tmp_path):
    def refused(path, match):
        with pytest.raises(UserError, match=match):
            read_torch(path)

    good = save(tmp_path / "good.pt", STATE)
    content = good.read_bytes()
    refused(tmp_path / "missing.pt", "there is no file")
    (tmp_path / "empty.pt").touch()
    refused(tmp_path / "empty.pt", "empty")
    at = content.index(STATE["W"].tobytes()) + 5
    flipped = tmp_path / "flipped.pt"
    flipped.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    refused(flipped, "checksum")
    assert read_torch(flipped, verify=False)["W"].shape == (3, 4)
    refused(save(tmp_path / "list.pt", [STATE["W"]]), "holds a list, not tensors with names")
    refused(save(tmp_path / "named.pt", {"x": Name("torch", "FloatStorage")}), "FloatStorage")
    refused(save(tmp_path / "order.pt", STATE, byteorder="middle"), "byte order")
    refused(write_archive(tmp_path / "no.pt", pickled(STATE, {}), {}), "no entry 'data/0'")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled({"x": "0" * 10_000_000}))
    refused(tmp_path / "bomb.pt", "compressed")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme", "")
    refused(tmp_path / "other.pt", "not one of torch.save")
    with gzip.open(tmp_path / "bomb.pkl.gz", "wb") as file:
        file.write(b"\x80\x02" + b"N" * (1 << 27))
    refused(tmp_path / "bomb.pkl.gz", "grows more than 20 times")
    (tmp_path / "memo.pt").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # the memo has a place 2,147,483,647
    assert read_torch(tmp_path / "memo.pt") == {}


def test_lists_that_hold_each_other_are_refused(tmp_path):
    laughs: list = ["ha"]
    for _ in range(40):
        laughs = [laughs, laughs]
    cycle: list = []
    cycle.append(cycle)
    deep: list = []
    for _ in range(80):
        deep = [deep]
    for name, value in {"laughs": laughs, "cycle": cycle, "deep": deep}.items():
        path = save(tmp_path / f"{name}.pt", {"x": value})
        with pytest.raises(UserError, match=r"objects|nested"):
            read_torch(path)


@pytest.mark.hardening
@pytest.mark.parametrize("seed", range(drawn(10, 500)))
@pytest.mark.parametrize("write", [save, save_legacy, save_plain])
def test_damaged_files_raise_nothing_but_user_errors(write, seed, tmp_path):
    rng = random.Random(seed)
    content = bytearray(write(tmp_path / "x.pt", STATE).read_bytes())
    for _ in range(20):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 20))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        damaged = damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))]
        (tmp_path / "x.pt").write_bytes(damaged)
        for options in ({}, {"verify": False}, {"keep_unknown": True, "verify": False}):
            with contextlib.suppress(UserError):  # any other exception fails
                read_torch(tmp_path / "x.pt", **options)
