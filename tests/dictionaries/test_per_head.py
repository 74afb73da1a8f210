"""A dictionary on a value per head: trained on all heads together, spliced in at the value it was read from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries import evaluate, init_sae, train_dictionary, variants
from jax_interp.dictionaries.activations import ReLU
from jax_interp.models import Config, init
from jax_interp.surgery import Splice, Zero, at, edit, read
from jax_interp.training import QUIET

ADDRESS = "blocks.0.attn.z"


@pytest.mark.slow
def test_an_sae_on_z_is_trained_evaluated_and_spliced():
    model = init(Config(n_layers=1, d_model=16, n_heads=2, d_mlp=16, vocab_size=32, n_ctx=16), jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 16), 0, 32)
    keep = jnp.ones((4, 16), bool)
    config = variants.topk(ADDRESS, k=4, n_features=32, steps=3, buffer=64)
    sae = train_dictionary(config, model, lambda i: (tokens, keep), log=QUIET)
    assert sae.W_dec.shape == (32, 16)
    assert evaluate(model, ADDRESS, sae, [(tokens, keep)]).reconstruction.l0 <= 4
    spliced = edit(model, at(ADDRESS, Splice(sae, error=True)))
    np.testing.assert_array_equal(spliced(tokens), model(tokens))
    without = edit(spliced, at(f"{ADDRESS}.latents", Zero()))
    latents = read(without, f"{ADDRESS}.latents", output=False)(tokens)[f"{ADDRESS}.latents"]
    assert latents.shape == (4, 16, 32)
    assert not np.array_equal(without(tokens), model(tokens))


def test_every_head_is_a_part_of_the_row():
    z = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    sae = init_sae(jax.random.key(1), 20, 8, ReLU())
    np.testing.assert_array_equal(sae.encode(z), sae.encode(z.reshape(2, 3, 20)))
    np.testing.assert_array_equal(sae(z), sae(z.reshape(2, 3, 20)).reshape(z.shape))
