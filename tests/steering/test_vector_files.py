"""Files of steering vectors: what comes back, what llama.cpp reads, and what happens to files that are malformed."""

from __future__ import annotations

import contextlib
import struct

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jax_interp.core.errors import UserError
from jax_interp.core.tensor_files import write_tensors
from jax_interp.steering import SteeringVector
from jax_interp.steering.applying import load_vectors, save_vectors

VECTOR = SteeringVector({f"blocks.{i}.resid_post": jnp.asarray(np.arange(5) / 7 + i, jnp.float32) for i in (1, 3)})


def control_vector(tensors=None, version=3, metadata=(), kind=0, dtype="<f4", alignment=32) -> bytes:
    """The bytes of a control vector by the published layout of GGUF, with an error if one is asked for."""
    text = lambda s: struct.pack("<Q", len(s)) + s.encode()
    tensors = {"direction.1": np.arange(5), "direction.3": np.arange(5) + 1} if tensors is None else tensors
    values = [("general.architecture", "controlvector"), ("controlvector.model_hint", "llama"), *metadata]
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values) + (alignment != 32))
    for name, value in values:
        head += text(name) + struct.pack("<I", 8) + text(value)
    if alignment != 32:
        head += text("general.alignment") + struct.pack("<II", 4, alignment)
    data = b""
    for name, array in tensors.items():
        array = np.asarray(array).astype(dtype)
        shape = array.shape[::-1]
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += array.tobytes() + bytes(-array.nbytes % alignment)
    return head + bytes(-len(head) % alignment) + data


@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_vectors_come_back(tmp_path, suffix):
    path = save_vectors(tmp_path / f"v.{suffix}", VECTOR, model="gpt2", method="caa")
    saved = load_vectors(path)
    assert (saved.model, saved.method, list(saved.vector.vectors)) == ("gpt2", "caa", list(VECTOR.vectors))
    for address, v in VECTOR.vectors.items():
        np.testing.assert_array_equal(saved.vector.vectors[address], v)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_safetensors_keep_the_dtype_and_any_address(tmp_path):
    vector = SteeringVector({"blocks.0.attn.hook_z": jnp.ones(3, jnp.bfloat16), "embed": jnp.ones(4, jnp.float16)})
    saved = load_vectors(save_vectors(tmp_path / "v.safetensors", vector)).vector.vectors
    assert {a: str(v.dtype) for a, v in saved.items()} == {"embed": "float16", "blocks.0.attn.z": "bfloat16"}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("kind", "dtype"), [(0, "<f4"), (1, "<f2"), (30, ml_dtypes.bfloat16)])
def test_control_vectors_of_other_programs_are_read(tmp_path, version, kind, dtype):
    """`direction.3` is the output of block 3, counted from 0, as llama.cpp and repeng add it."""
    (tmp_path / "v.gguf").write_bytes(control_vector(None, version, kind=kind, dtype=dtype, alignment=64))
    saved = load_vectors(tmp_path / "v.gguf")
    assert saved.model == "llama"
    np.testing.assert_array_equal(saved.vector.vectors["blocks.3.resid_post"].astype(jnp.float32), np.arange(5) + 1)
    assert list(saved.vector.vectors) == ["blocks.1.resid_post", "blocks.3.resid_post"]


MALFORMED = {
    "F32, F16 and BF16": control_vector(kind=8),
    "version 50331648 of GGUF, or big-endian": control_vector(version=3 << 24),
    "is no direction.LAYER": control_vector({"direction.01": np.ones(2)}),
    "several shapes": control_vector({"direction.1": np.ones(2), "direction.2": np.ones(3)}),
    "not a list of floats": control_vector({"direction.1": np.ones((2, 2))}),
    "NaN or infinite": control_vector({"direction.1": np.array([1, np.nan])}),
    "has no vectors": control_vector({}),
    "the name 'x' comes twice": control_vector(metadata=[("x", "a"), ("x", "b")]),
    "bytes after the file": control_vector()[:-33],
    "more than it holds": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1) + bytes(30),
    "bytes from byte": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + bytes(30),
    "no control vector: its general.architecture is 'llama'": control_vector().replace(b"controlvector", b"llama", 1)
    .replace(struct.pack("<Q", 13) + b"llama", struct.pack("<Q", 5) + b"llama"),
    "not a whole safetensors file": b"\x93NUMPY and more",
}  # fmt: skip


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_files_are_refused_in_one_line(tmp_path, message):
    (tmp_path / "v.gguf").write_bytes(MALFORMED[message])
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as error:
        load_vectors(tmp_path / "v.gguf")
    assert "\n" not in str(error.value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=4),
    cut=st.none() | st.integers(0, 400),
    longer=st.binary(max_size=5),
)
def test_flipped_and_cut_bytes_are_read_or_refused(tmp_path, flips, cut, longer):
    """There is no other error, whatever the bytes. What is read is finite vectors."""
    data = bytearray(control_vector())
    for place, change in flips:
        data[place % len(data)] ^= change
    (tmp_path / "v.gguf").write_bytes(bytes(data[:cut]) + longer)
    with contextlib.suppress(UserError):
        saved = load_vectors(tmp_path / "v.gguf")
        assert all(jnp.isfinite(v).all() and v.ndim == 1 for v in saved.vector.vectors.values())


def test_what_a_format_cannot_hold_is_said(tmp_path):
    at_0 = SteeringVector({"blocks.0.resid_post": jnp.ones(3)})
    with pytest.raises(UserError, match=r"llama\.cpp refuses a control vector at block 0"):
        save_vectors(tmp_path / "v.gguf", at_0)
    assert list(load_vectors(save_vectors(tmp_path / "0.gguf", at_0, layer_0=True)).vector.vectors) == [*at_0.vectors]
    with pytest.raises(UserError, match="not at 'embed'"):
        save_vectors(tmp_path / "v.gguf", SteeringVector({"embed": jnp.ones(3)}))
    with pytest.raises(UserError, match=r"must end with \.safetensors or \.gguf"):
        save_vectors(tmp_path / "v.npz", VECTOR)
    with pytest.raises(UserError, match="NaN or infinite"):
        save_vectors(tmp_path / "v.gguf", SteeringVector({"blocks.1.resid_post": jnp.full(3, jnp.inf)}))
    with pytest.raises(UserError, match="there is no file"):
        load_vectors(tmp_path / "v.gguf")
    header = {"steering": '{"format": 1, "model": "", "method": ""}'}
    for name in ("../../etc/passwd", "blocks.*.resid_post", "blocks.resid_post", "blocks.1.hook_resid_post"):
        both = {"blocks.1.resid_post": np.ones(3, np.float32), name: np.ones(3, np.float32)}
        write_tensors(tmp_path / "n.safetensors", both, header)
        with pytest.raises(UserError, match=r"no address|not the address of one value"):
            load_vectors(tmp_path / "n.safetensors")
