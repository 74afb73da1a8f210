"""The units of every form of dictionary are its latents, in the order that their indices say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_things import temporal

from jax_interp.dashboards.form_latents import count, latent_names, scores_of, with_directions
from jax_interp.data.harvest import harvest, values
from jax_interp.dictionaries.activations import ReLU
from jax_interp.dictionaries.forms import Normalised, init_sae
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.models import Config, init

SITE = "blocks.0.resid_post"
READS = ("blocks.0.resid_pre", "blocks.0.resid_post")


@pytest.fixture(scope="module")
def model():
    return init(Config(n_layers=1, d_model=8, n_heads=2, d_mlp=16, vocab_size=20, n_ctx=6), jax.random.key(0))


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 20, (3, 6)), jnp.int32)


def rows(model, tokens):
    return harvest(model, SITE, tokens)


def test_a_dictionary_that_normalises_has_its_latents_and_directions(model, tokens):
    dictionary = Normalised(init_sae(jax.random.key(1), 8, 16, ReLU()), "layer_norm")
    found = scores_of(dictionary, SITE)(model, tokens)
    np.testing.assert_allclose(found, dictionary.encode(rows(model, tokens)), rtol=1e-6)
    np.testing.assert_array_equal(with_directions(dictionary).W_dec, dictionary.dictionary.W_dec)
    assert count(dictionary) == 16


def test_a_temporal_dictionary_reads_each_sequence_by_itself(model, tokens):
    dictionary = temporal(0)
    found = np.asarray(scores_of(dictionary, SITE)(model, tokens)).reshape(3, 6, -1)
    for i in range(3):
        alone = dictionary.encode(rows(model, tokens[i : i + 1])[None])
        np.testing.assert_allclose(found[i], alone[0], rtol=1e-5, atol=1e-6)


def test_the_latents_of_a_cross_layer_dictionary_stand_source_after_source(model, tokens):
    one, other = (init_sae(jax.random.key(i), 8, 16, ReLU()) for i in (1, 2))
    sources = tuple(
        Source(sae.W_enc, sae.b_enc, jnp.zeros((16, targets, 8)), sae.activation)
        for sae, targets in ((one, 2), (other, 1))
    )
    dictionary = CrossLayer(sources, jnp.zeros((2, 8)))
    found = np.asarray(scores_of(dictionary, READS)(model, tokens))
    assert count(dictionary) == found.shape[1] == 32
    for i, (sae, x) in enumerate(zip((one, other), values(model, READS, tokens))):
        np.testing.assert_allclose(
            found[:, 16 * i : 16 * (i + 1)],
            np.maximum(np.asarray(x) @ np.asarray(sae.W_enc) + np.asarray(sae.b_enc), 0),
            atol=1e-6,
        )
    assert latent_names(dictionary, READS)[17] == "blocks.0.resid_post 1"
