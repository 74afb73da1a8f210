"""Saved dictionaries come back with the same bits, or not at all."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import Jump, ReLU, TopK
from jax_interp.dictionaries.forms import Dictionary, init_sae, init_transcoder
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.loading import load_dictionary
from jax_interp.dictionaries.saving import save_dictionary
from jax_interp.dictionaries.storage import DESCRIPTION, TENSORS
from jax_interp.dictionaries.training.config import CrossLayerConfig, DictionaryConfig

CONFIG = variants.topk("blocks.1.resid_post", k=3, n_features=32)


@pytest.fixture
def saved(tmp_path):
    sae = init_sae(jax.random.key(0), 8, 32, TopK(3), jnp.arange(8.0))
    return sae, save_dictionary(tmp_path / "new" / "one", sae, address=CONFIG.address, model="toy", config=CONFIG)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_saved_comes_back_to_the_bit(tmp_path, dtype):
    sae = jax.tree.map(lambda a: a.astype(dtype), init_sae(jax.random.key(0), 8, 32, TopK(3), jnp.arange(8.0)))
    save_dictionary(tmp_path, sae, address=CONFIG.address, model="toy", config=CONFIG)
    found = load_dictionary(tmp_path)
    assert jax.tree.structure(found.dictionary) == jax.tree.structure(sae)
    for a, b in zip(jax.tree.leaves(found.dictionary), jax.tree.leaves(sae), strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert (found.address, found.model) == (CONFIG.address, "toy")
    assert configs.from_json(DictionaryConfig, found.config) == CONFIG


def test_a_transcoder_with_a_skip_comes_back(tmp_path):
    one = init_transcoder(jax.random.key(0), 8, 12, 32, ReLU(), jnp.ones(8), jnp.ones(12), skip=True)
    save_dictionary(tmp_path, one, address=("a", "b"), writes="c", model="toy")
    found = load_dictionary(tmp_path)
    assert jax.tree.structure(found.dictionary) == jax.tree.structure(one)
    jax.tree.map(np.testing.assert_array_equal, found.dictionary, one)
    assert (found.address, found.writes) == (("a", "b"), "c")


def cross_layer(activations, skip=False):
    sources = []
    for i, activation in enumerate(activations):
        rng = np.random.default_rng(i)
        normal = lambda *shape, rng=rng: jnp.asarray(rng.standard_normal(shape), jnp.float32)
        W_skip = normal(8, 12) if skip else None
        sources.append(Source(normal(8, 32), normal(32), normal(32, len(activations) - i, 12), activation, W_skip))
    return CrossLayer(tuple(sources), jnp.arange(12.0 * len(activations)).reshape(-1, 12))


@pytest.mark.parametrize("skip", [False, True])
def test_a_cross_layer_dictionary_comes_back(tmp_path, skip):
    clt = cross_layer((Jump(jnp.arange(32.0), bandwidth=0.25), ReLU(), TopK(3, weighted=True)), skip)
    config = variants.batch_topk_cross_layer(("a", "b", "c"), ("d", "e", "f"), k=3, n_features=32)
    save_dictionary(tmp_path, clt, address=("a", "b", "c"), writes=("d", "e", "f"), model="toy", config=config)
    found = load_dictionary(tmp_path)
    assert jax.tree.structure(found.dictionary) == jax.tree.structure(clt)
    for a, b in zip(jax.tree.leaves(found.dictionary), jax.tree.leaves(clt), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (found.address, found.writes) == (("a", "b", "c"), ("d", "e", "f"))
    assert configs.from_json(CrossLayerConfig, found.config) == config


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("form", "Tree", "form 'Tree'; this version knows Dictionary, Normalised"),
        ("form", "Dictionary", "W_enc should have shape"),
        ("d_in", 9, r"sources\.0\.W_enc should have shape \(9, 32\)"),
        ("targets", [3, 2, 2], r"sources\.2\.W_dec should have shape \(32, 2, 12\)"),
        ("targets", [3, 2], r"b_dec should have shape \(2, 12\)"),
    ],
)
def test_another_form_than_the_tensors_is_refused(tmp_path, key, value, says):
    save_dictionary(tmp_path, cross_layer((ReLU(),) * 3), address=("a", "b", "c"), model="toy")
    description = read_json(tmp_path / DESCRIPTION) | {key: value}
    write_json(tmp_path / DESCRIPTION, description)
    with pytest.raises(UserError, match=says):
        load_dictionary(tmp_path)


def test_the_tensors_are_plain_safetensors(saved):
    from safetensors.numpy import load_file

    sae, directory = saved
    arrays = load_file(directory / TENSORS)
    assert {name: a.shape for name, a in arrays.items()} == {
        "W_enc": (8, 32), "b_enc": (32,), "W_dec": (32, 8), "b_dec": (8,),
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["W_enc"], sae.W_enc)


def test_damage_is_refused_by_name(saved):
    _, directory = saved
    whole = (directory / TENSORS).read_bytes()
    for damaged in (whole[:-5], whole[:-1] + bytes([whole[-1] ^ 1])):
        (directory / TENSORS).write_bytes(damaged)
        with pytest.raises(UserError, match=r"dictionary\.safetensors is (damaged|not a whole)"):
            load_dictionary(directory)
    (directory / TENSORS).unlink()
    with pytest.raises(UserError, match=r"dictionary\.safetensors is missing"):
        load_dictionary(directory)
    with pytest.raises(UserError, match="there is no file or folder"):
        load_dictionary(directory / "elsewhere")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("format", 99, "format 99; this version reads 2"),
        ("activation", {"type": "Tanh"}, "Tanh"),
        ("activation", {"type": "TopK", "width": 3}, "does not fit TopK"),
        ("n_features", 33, r"W_enc should have shape \(8, 33\)"),
    ],
)
def test_what_this_version_does_not_know_is_refused(saved, key, value, says):
    _, directory = saved
    description = read_json(directory / DESCRIPTION) | {key: value}
    write_json(directory / DESCRIPTION, description)
    with pytest.raises(UserError, match=says):
        load_dictionary(directory)
    (directory / DESCRIPTION).write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_dictionary(directory)


@pytest.mark.parametrize("name", ["d_in", "n_features", "centred", "address", "model", "config"])
def test_a_description_that_lacks_something_is_refused(saved, name):
    _, directory = saved
    description = read_json(directory / DESCRIPTION)
    del description[name]
    write_json(directory / DESCRIPTION, description)
    with pytest.raises(UserError, match=f"dictionary.json (lacks {name}|does not describe a dictionary: '{name}')"):
        load_dictionary(directory)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extra": 1}, "describes another dictionary than its tensors"),
        ({"centred": 1}, "centred is 1"),
        ({"write_sites": 3}, "write_sites 3: true or false, and a divisor of 8"),
        ({"dtype": "bfloat16"}, "describes another dictionary than its tensors"),
        ({"d_in": "8"}, "W_enc should have shape"),
        ({"address": 3}, "address is 3"),
        ({"activation": {"type": "TopK", "k": 0}}, "k is 0; with 32 features it is from 1 to 32"),
        ({"activation": {"type": "TopK", "k": 33}}, "k is 33; with 32 features it is from 1 to 32"),
        ({"activation": {"type": "TopK", "k": 3, "limit": [2]}}, r"limit is \[2\], which is not null"),
        ({"activation": {"type": "TopK", "k": 3.0}}, r"k is 3\.0, which is not int"),
        ({"activation": {"type": "TopK", "k": 3, "weighted": 1}}, "weighted is 1, which is not bool"),
    ],
)
def test_a_description_of_something_else_is_refused(saved, change, says):
    _, directory = saved
    write_json(directory / DESCRIPTION, read_json(directory / DESCRIPTION) | change)
    with pytest.raises(UserError, match=says):
        load_dictionary(directory)


def test_a_skip_and_thresholds_of_other_shapes_are_refused():
    whole = dataclasses.replace(
        init_sae(jax.random.key(0), 8, 32, Jump(jnp.zeros(32))), centred=False, W_skip=jnp.zeros((8, 8))
    )
    description, arrays = whole.describe()
    for name, shape in {"W_skip": (3, 3), "activation.log_threshold": (5,)}.items():
        with pytest.raises(UserError, match=f"{name} should have shape"):
            Dictionary.from_description(description, arrays | {name: jnp.zeros(shape)})
