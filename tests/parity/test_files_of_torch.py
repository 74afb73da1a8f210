"""Torch writes files in each of its layouts, and `read_torch` gives the same numbers, bit for bit."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.torch_files import read_torch

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32"),
    *("uint64", "bool", "complex64", "complex128"),
)


def dump(content, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def dump_compressed(content, path: Path) -> None:
    path.write_bytes(gzip.compress(pickle.dumps(content)))


def save_older(content, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


LAYOUTS = {"zip.pt": torch.save, "older.pt": save_older, "plain.pkl": dump, "plain.pkl.gz": dump_compressed}


def views(dtype: str) -> dict:
    whole = (torch.rand(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100).to(
        getattr(torch, dtype)
    )
    return {
        "whole": whole,
        "transposed": whole.T,
        "part": whole[1:5, 2::3],
        "column": whole[:, 3],
        "repeated": whole[:2, :1].expand(2, 5),
        "diagonal": whole.as_strided((4,), (9,), 2),
        "number": whole[2, 2],
        "empty": whole[:0],
        "own storage": whole.clone()[::2],
    }


def bits(tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_stride_and_layout(dtype, layout, tmp_path):
    expected = views(dtype)
    LAYOUTS[layout](expected, tmp_path / layout)
    found = read_torch(tmp_path / layout)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype.name, found[name].shape) == (dtype, tuple(tensor.shape)), name
        assert np.ascontiguousarray(found[name]).tobytes() == bits(tensor), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_dicts_parameters_and_plain_values(layout, tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    plain = {"shape": module[0].weight.shape, "names": ["a", ("b", None, True, 2.5, -(10**12))], 3: {"x": b"\x00\xfe"}}
    content = {
        "state": module.state_dict(),
        "parameter": torch.nn.Parameter(module[0].bias.detach()),
        "plain": plain,
        "dtype": torch.bfloat16,
    }
    LAYOUTS[layout](content, tmp_path / layout)
    found = read_torch(tmp_path / layout)
    assert list(found["state"]) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert found["state"][name].tobytes() == bits(tensor)
    assert found["parameter"].tobytes() == bits(module[0].bias)
    assert found["plain"] == plain | {"shape": (4, 3)}
    assert found["dtype"] == "bfloat16"


def test_big_endian_files(tmp_path):
    """Torch states the byte order of an archive. Its own loader swaps the bytes, and so does the reader."""
    from tests.torch_archives import save

    expected = {
        dtype: np.asarray(np.arange(6).reshape(2, 3) * 1.5, np.dtype(dtype))
        for dtype in ("float64", "float32", "float16", "int64", "int32", "int16", "complex64", "complex128")
    }
    path = save(tmp_path / "big.pt", expected, byteorder="big")
    theirs, ours = torch.load(path, weights_only=True), read_torch(path)
    for name in expected:
        assert ours[name].tobytes() == theirs[name].numpy().tobytes() == expected[name].tobytes()


def test_files_of_the_test_writer_load_in_torch(tmp_path):
    """The writer that the other tests use makes what torch makes."""
    from tests.torch_archives import save, save_legacy

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for write in (save, save_legacy):
        found = torch.load(write(tmp_path / "x.pt", {"x": array, "n": 3}), weights_only=True)
        assert found["n"] == 3
        assert np.array_equal(found["x"].numpy(), array)


@pytest.mark.filterwarnings("ignore")  # torch wants other ways to quantise and to script
def test_what_is_refused(tmp_path):
    cases = {
        "float8_e4m3fn": {"x": torch.zeros(3).to(torch.float8_e4m3fn)},
        "Linear": torch.nn.Linear(2, 3),
        "_rebuild_sparse_tensor": {"x": torch.eye(3).to_sparse()},
        "_rebuild_qtensor": {"x": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
    }
    for named, content in cases.items():
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(UserError, match=named):
            read_torch(tmp_path / "x.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), str(tmp_path / "x.pt"))
    with pytest.raises(UserError, match="TorchScript"):
        read_torch(tmp_path / "x.pt")


def test_files_without_checksums_are_read(tmp_path):
    tensor = torch.arange(4.0)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": tensor}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_torch(tmp_path / "x.pt")["x"].tobytes() == bits(tensor)
