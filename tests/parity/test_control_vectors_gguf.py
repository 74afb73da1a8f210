"""GGUF control vectors with the `gguf` package: it reads ours, and we read what repeng writes with it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.steering import SteeringVector
from jax_interp.steering.applying import load_vectors, save_vectors

pytestmark = pytest.mark.parity


def test_gguf_reads_ours(tmp_path):
    from gguf import GGUFReader

    vectors = {f"blocks.{i}.resid_post": jnp.asarray(np.random.default_rng(i).normal(size=9)) for i in (1, 2, 12)}
    reader = GGUFReader(save_vectors(tmp_path / "v.gguf", SteeringVector(vectors), model="llama", method="pca"))
    text = lambda key: bytes(reader.get_field(key).parts[-1]).decode()  # as repeng reads it
    assert text("general.architecture") == "controlvector"
    assert text("controlvector.model_hint") == "llama"
    assert reader.get_field("controlvector.layer_count").parts[-1][0] == 3
    assert {t.name: t.tensor_type.name for t in reader.tensors} == {f"direction.{i}": "F32" for i in (1, 2, 12)}
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, vectors[f"blocks.{tensor.name.split('.')[1]}.resid_post"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_we_read_what_gguf_writes(tmp_path, dtype):
    """The calls of repeng's export_gguf. Its layers are numbers of blocks, from 0, and it begins at 1."""
    from gguf import GGUFWriter

    directions = {i: np.random.default_rng(i).normal(size=9).astype(dtype) for i in (3, 1, 2)}
    writer = GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", len(directions))
    writer.add_array("general.tags", ["a", "b"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_bool("yes", True)
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    saved = load_vectors(tmp_path / "v.gguf")
    assert (saved.model, saved.method) == ("mistral", "")
    assert list(saved.vector.vectors) == [f"blocks.{i}.resid_post" for i in directions]
    for layer, direction in directions.items():
        found = saved.vector.vectors[f"blocks.{layer}.resid_post"]
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, direction)


def test_a_quantised_tensor_is_refused_by_the_name_of_its_type(tmp_path):
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    for name in ("Q8_0", "Q4_0"):
        kind = GGMLQuantizationType[name]
        writer = GGUFWriter(tmp_path / "q.gguf", "controlvector")
        writer.add_tensor("direction.1", quantize(np.ones(64, np.float32), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ValueError, match=f"has type {name}"):
            load_vectors(tmp_path / "q.gguf")
