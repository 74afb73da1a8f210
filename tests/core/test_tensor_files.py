"""Tensor files: every dtype to the bit, files that appear whole, and every kind of damage refused by name."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.atomic_write import WriteError
from jax_interp.core.json_files import JsonError, is_file_name
from jax_interp.core.tensor_files import (
    DTYPES,
    FLOATS,
    TensorFileError,
    read_described,
    read_header,
    read_tensors,
    write_described,
    write_tensors,
)

ARRAYS = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_and_shape_to_the_bit(tmp_path, dtype):
    bits = np.random.default_rng(0).integers(0, 2, (3, 4))
    arrays = {"matrix": bits, "columns": np.asfortranarray(bits), "scalar": bits[0, 0], "empty": bits[:0]}
    arrays = {name: np.asarray(array).astype(jnp.dtype(dtype)) for name, array in arrays.items()}
    path = write_tensors(tmp_path / "new" / "a.safetensors", arrays, {"note": "ü"})
    file = read_tensors(path)
    assert file.header == read_header(path) == {"note": "ü"}
    assert file.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (file.arrays[name].dtype, file.arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(file.arrays[name], array)


def test_a_dtype_that_cannot_be_read_back_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TensorFileError, match="'w' has dtype float8_e4m3fn"):
        write_tensors(tmp_path / "a.safetensors", {"w": jnp.ones(3, jnp.float8_e4m3fn)})
    assert not list(tmp_path.iterdir())


def test_a_missing_a_foreign_and_a_cut_file_are_refused_by_name(tmp_path):
    with pytest.raises(TensorFileError, match=r"there is no file '.*none'"):
        read_tensors(tmp_path / "none")
    path = write_tensors(tmp_path / "a.safetensors", ARRAYS)
    whole = path.read_bytes()
    for content in [whole[:n] for n in range(0, len(whole), 7)] + [b"PK\3\4 a zip", b"\x80\x04 a pickle"]:
        path.write_bytes(content)
        with pytest.raises(TensorFileError, match=r"a\.safetensors is not a whole safetensors file"):
            read_tensors(path)


@pytest.mark.parametrize("broken", ["open", "fsync"])
def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path, monkeypatch, broken):
    path = write_tensors(tmp_path / "a.safetensors", ARRAYS)
    fails = lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync" if broken == "fsync" else "jax_interp.core.tensor_files.open", fails, raising=False)
        with pytest.raises(WriteError, match=r"cannot write '.*a\.safetensors': No space left on device; free some"):
            write_tensors(path, {"other": np.zeros(2)})
    np.testing.assert_array_equal(read_tensors(path).arrays["w"], ARRAYS["w"])
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.fixture
def pair(tmp_path):
    return write_described(tmp_path, "thing", ARRAYS, {"format": 3, "width": 2})


def test_a_described_pair(pair):
    description, arrays = read_described(pair, "thing", formats=(2, 3), what="thing")
    assert (description["format"], description["width"]) == (3, 2)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
    assert sorted(file.name for file in pair.iterdir()) == ["thing.json", "thing.safetensors"]


def test_a_pair_that_is_not_whole_is_refused(pair):
    read = lambda **options: read_described(pair, "thing", **{"formats": (3,), "what": "thing"} | options)
    with pytest.raises(TensorFileError, match="has format 3; this version reads 1, 2"):
        read(formats=(1, 2))
    with pytest.raises(TensorFileError, match=r"'[bw]' has dtype float32; a thing has float16"):
        read(dtypes={"float16"})
    assert read(dtypes=FLOATS)
    write_tensors(pair / "thing.safetensors", {"w": ARRAYS["b"]})  # a save that was interrupted between the two
    with pytest.raises(TensorFileError, match=r"thing\.safetensors is not the file that thing\.json describes"):
        read()
    (pair / "thing.json").write_text("[")
    with pytest.raises(JsonError, match=r"thing\.json is not JSON"):
        read()
    (pair / "thing.json").write_text("[]")
    with pytest.raises(JsonError, match=r"thing\.json should hold a JSON object, it holds a list"):
        read()
    for name in ("thing.safetensors", "thing.json"):
        (pair / name).unlink()
        with pytest.raises(TensorFileError, match=f"no thing in .*: {name} is missing"):
            read()


@pytest.mark.parametrize("name", ["../a.bin", "/a.bin", "b/a.bin", "b\\a.bin", "a.txt", "", None, 3])
def test_a_name_from_a_file_is_no_path(name):
    assert is_file_name("a.bin", ".bin")
    assert not is_file_name(name, ".bin")
