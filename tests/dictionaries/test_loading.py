"""`load_dictionary` and `save_dictionary`: detection, dtypes, meshes, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten
from jax_interp.dictionaries import ReLU, load_dictionary, save_dictionary
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.formats import FORMATS, Files, Format
from jax_interp.dictionaries.forms import Dictionary, init_sae
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.storage import Saved
from jax_interp.training.sharding import make_mesh, shardings

D, M = 8, 16


@pytest.fixture
def registered():
    """Formats of a test: registered in it, and gone afterwards."""
    before = dict(FORMATS._variants)
    yield FORMATS.register
    FORMATS._variants.clear()
    FORMATS._variants.update(before)


@pytest.fixture
def transposed(registered):
    """A format with both matrices transposed, and an input scale that must be folded."""

    @registered
    class Transposed(Format):
        name, title, writes = "transposed", "A test", True

        @classmethod
        def recognise(cls, files: Files) -> bool:
            return "transposed.safetensors" in files

        @classmethod
        def read(cls, files: Files) -> Saved:
            tensors = files.tensors("transposed.safetensors")
            W = {name: files.place(name, tensors[name].T) for name in ("W_enc", "W_dec")}
            b = {name: files.place(name, tensors[name]) for name in ("b_enc", "b_dec")}
            dictionary = Dictionary(**W, **b, activation=ReLU(), centred=False)
            return Saved(dictionary, "blocks.0.resid_post", "toy")

        @classmethod
        def write(cls, saved: Saved, directory: Path) -> Path:
            names = ("W_enc", "W_dec", "b_enc", "b_dec")
            arrays = {name: np.ascontiguousarray(getattr(saved.dictionary, name).T) for name in names}
            directory.mkdir(parents=True, exist_ok=True)
            save_file(arrays, directory / "transposed.safetensors")
            return directory

    return Transposed


def made(dtype=jnp.float32, **changes) -> Dictionary:
    sae = init_sae(jax.random.key(0), D, M, ReLU(), jnp.arange(D) / 8, centred=False, dtype=dtype)
    return dataclasses.replace(sae, **changes)


def assert_same(a, b):
    assert flatten(a).keys() == flatten(b).keys()
    for name, leaf in flatten(a).items():
        np.testing.assert_array_equal(leaf, flatten(b)[name], err_msg=name)


def test_a_format_is_detected_written_and_read(tmp_path, transposed):
    sae = made()
    save_dictionary(tmp_path, sae, format="transposed")
    for source in (tmp_path, str(tmp_path), tmp_path / "transposed.safetensors"):
        saved = load_dictionary(source)
        assert (saved.format, saved.address, saved.model) == ("transposed", "blocks.0.resid_post", "toy")
        assert_same(saved.dictionary, sae)
    # what was loaded is saved in the format of this package without saying its names again, and with another name
    again = load_dictionary(save_dictionary(tmp_path / "native", saved, model="other"))
    assert (again.format, again.address, again.model) == ("jax_interp", "blocks.0.resid_post", "other")
    assert_same(again.dictionary, sae)


def test_notes_and_stated_figures_are_kept(tmp_path):
    saved = Saved(made(), "embed", "toy", notes=("weights centred",), stated={"l0": 3.5})
    again = load_dictionary(save_dictionary(tmp_path, saved))
    assert (again.notes, again.stated) == (saved.notes, saved.stated)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_files_of_other_programs_are_computed_in_float32(tmp_path, transposed, stored):
    wide = {name: np.asarray(getattr(made(), name).T, np.float64) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    arrays = {name: np.ascontiguousarray(a.astype(stored)) for name, a in wide.items()}
    if stored == np.float64:
        np.savez(tmp_path / "a.npz", **arrays)
    save_file(arrays, tmp_path / "transposed.safetensors")
    found = load_dictionary(tmp_path).dictionary
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(found.W_enc, arrays["W_enc"].astype(np.float32).T)
    half = load_dictionary(tmp_path, dtype="bfloat16").dictionary
    assert half.W_dec.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half.W_dec, found.W_dec.astype(jnp.bfloat16))


def test_files_of_this_package_keep_their_dtype(tmp_path):
    save_dictionary(tmp_path, made(jnp.bfloat16), address="embed", model="toy")
    assert load_dictionary(tmp_path).dictionary.W_enc.dtype == jnp.bfloat16
    assert load_dictionary(tmp_path, dtype=jnp.float32).dictionary.W_enc.dtype == jnp.float32


@pytest.mark.parametrize("sizes", [{"data": 2}, {"fsdp": 2}, {"tensor": 2}, {"fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("format", ["jax_interp", "transposed"])
def test_a_mesh_holds_the_same_numbers(tmp_path, transposed, sizes, explicit, format):
    theta = jnp.linspace(0.1, 0.9, M)
    changes = {"activation": Jump.of(theta)} if format == "jax_interp" else {}
    sae = made(**changes)
    save_dictionary(tmp_path, sae, address="embed", model="toy", format=format)
    mesh = make_mesh(**sizes, explicit=explicit)
    found = load_dictionary(tmp_path, place=mesh).dictionary
    assert_same(found, load_dictionary(tmp_path).dictionary)
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(shardings(sae, rules(sae), mesh))):
        assert leaf.sharding == wanted


def test_each_device_reads_only_its_part(tmp_path, transposed, monkeypatch):
    from jax_interp.dictionaries.formats import placing

    save_dictionary(tmp_path, made(), format="transposed")
    sizes = []
    buffer = placing._buffer
    monkeypatch.setattr(placing, "_buffer", lambda shape, dtype: sizes.append(shape) or buffer(shape, dtype))
    load_dictionary(tmp_path, place=make_mesh(fsdp=2, tensor=2))
    assert set(sizes) == {(D // 2, M // 2), (M // 2, D // 2), (M // 2,), (D,)}


def test_a_mesh_that_does_not_divide_is_refused(tmp_path, transposed):
    save_dictionary(tmp_path, made(), format="transposed")
    with pytest.raises(UserError, match="W_enc has an axis of 16, which tensor = 3 does not divide"):
        load_dictionary(tmp_path, place=make_mesh(tensor=3))


def test_what_is_refused(tmp_path, transposed, registered):
    with pytest.raises(UserError, match="there is no file or folder"):
        load_dictionary(tmp_path / "nothing")
    (tmp_path / "layer_3").mkdir()
    with pytest.raises(UserError, match=r"no files. Give one of its folders: layer_3.*jax_interp \(jax_interp\)"):
        load_dictionary(tmp_path)
    save_dictionary(tmp_path, made(), format="transposed")
    with pytest.raises(UserError, match=r"no format 'transpose'\. Did you mean 'transposed'"):
        load_dictionary(tmp_path, format="transpose")
    with pytest.raises(UserError, match="no format 'pt'"):
        save_dictionary(tmp_path, made(), format="pt")
    with pytest.raises(UserError, match="dtype=int32"):
        load_dictionary(tmp_path, dtype="int32")
    save_dictionary(tmp_path / "native", made(), address="embed", model="toy")
    (tmp_path / "native" / "transposed.safetensors").write_bytes((tmp_path / "transposed.safetensors").read_bytes())
    with pytest.raises(UserError, match="formats 'jax_interp' and 'transposed': give format="):
        load_dictionary(tmp_path / "native")
    assert load_dictionary(tmp_path / "native", format="jax_interp").format == "jax_interp"
    with pytest.raises(UserError, match="do not say which value it reads"):
        save_dictionary(tmp_path / "b", made(), model="toy")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["W_enc", "b_dec"])
@pytest.mark.parametrize("place", [None, {"tensor": 2}])
def test_numbers_that_are_not_finite_are_refused(tmp_path, transposed, bad, name, place):
    array = getattr(made(), name)
    sae = made(**{name: array.at[(-1,) * array.ndim].set(bad)})
    save_dictionary(tmp_path, sae, format="transposed")
    with pytest.raises(UserError, match=f"{name} has numbers that are NaN or infinite"):
        load_dictionary(tmp_path, place=place and make_mesh(**place))


def test_a_number_beyond_the_asked_dtype_is_refused(tmp_path, transposed):
    save_dictionary(tmp_path, made(b_enc=jnp.full((M,), 1e6)), format="transposed")
    with pytest.raises(UserError, match="b_enc has numbers beyond the range of float16"):
        load_dictionary(tmp_path, dtype="float16")
