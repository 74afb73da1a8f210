"""Trained toys on disk: read again, told apart, refused when damaged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jax_interp.core.tensor_files import read_tensors
from jax_interp.toys.cache import CacheError, cached
from jax_interp.toys.tms import TMSConfig, tms_target
from jax_interp.toys.toy_training import ToyTraining


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_INTERP_CACHE", str(tmp_path / "toys"))
    return tmp_path / "toys"


def test_a_target_is_trained_once(folder):
    config = TMSConfig(3, 2, n_identity=1, training=ToyTraining(20, 16))
    first, again = tms_target(config), tms_target(config)
    (file,) = folder.glob("*.safetensors")
    assert file.name.startswith("tms-")
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    tms_target(config, seed=1)
    assert len(list(folder.glob("*.safetensors"))) == 2


def test_a_file_with_earlier_field_names_is_found(folder):
    config = TMSConfig(3, 2, random_bias=True, training=ToyTraining(20, 16))
    first = tms_target(config)
    (file,) = folder.glob("*.safetensors")
    written = read_tensors(file)
    asked = written.header["asked"]
    for now, earlier in (("training", "recipe"), ("ToyTraining", "Recipe"), ("random_bias", "draws_bias")):
        assert f'"{now}"' in asked
        asked = asked.replace(f'"{now}"', f'"{earlier}"')
    file.unlink()
    save_file(written.arrays, folder / "tms-0123.safetensors", metadata=written.header | {"asked": asked})
    again = tms_target(config)
    assert not file.exists()
    np.testing.assert_array_equal(first.linear1.weight, again.linear1.weight)


def test_what_is_damaged_is_refused_by_name(folder):
    made = []
    make = lambda: made.append(1) or {"a": jnp.arange(6.0)}
    template = {"a": jax.ShapeDtypeStruct((6,), jnp.float32)}
    ask = lambda config, like=template: cached("thing", config, 0, like, make)
    ask({"size": 1})
    ask({"size": 1})
    ask({"size": 2})
    assert len(made) == 2
    one, other = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)

    with pytest.raises(CacheError, match="does not have the arrays"):
        ask({"size": 1}, {"a": jax.ShapeDtypeStruct((5,), jnp.float32)})
    sound = one.read_bytes()
    one.write_bytes(sound[:-4] + b"\0\0\0\0")
    with pytest.raises(CacheError, match=rf"{one.name}.*is damaged.*delete it"):
        ask({"size": 1})
    one.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(CacheError, match=r"is damaged"):
        ask({"size": 1})
    one.write_bytes(other.read_bytes())
    with pytest.raises(CacheError, match="holds another config"):
        ask({"size": 1})
    one.unlink()
    np.testing.assert_array_equal(ask({"size": 1})["a"], jnp.arange(6.0))
