"""Training on known worlds: what the papers that made them report."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries import Adam, train_dictionary, variants
from jax_interp.dictionaries.similarity import cosines, match
from jax_interp.dictionaries.synthetic import as_model, score, sharkey, small_bench, tree, two_models
from jax_interp.errors import UserError
from jax_interp.surgery import read


def test_a_world_is_a_model_whose_tokens_number_its_rows():
    world = two_models(jax.random.key(0), d=8)
    model, batch_at = as_model(world, jax.random.key(1), sites=("base", "chat"), batch=6)
    tokens, keep = batch_at(2)
    out, values = jax.jit(lambda model, tokens: read(model, "base", "chat")(tokens))(model, tokens)
    np.testing.assert_array_equal(tokens, 12 + np.arange(6)[None])
    assert keep.all()
    np.testing.assert_array_equal(jnp.concatenate([values["base"], values["chat"]], axis=-1), out)
    row = world.sample(jax.random.fold_in(jax.random.key(1), 15), 1)[0]
    np.testing.assert_allclose(out[0, 3], row[0], atol=1e-6)
    with pytest.raises(UserError, match="16 dimensions"):
        as_model(world, jax.random.key(1), sites=("a", "b", "c"))


def trained(world, config):
    return train_dictionary(config, *as_model(world, jax.random.key(1)), quiet=True)


@pytest.mark.slow
def test_superposed_features_are_found():
    world = sharkey(jax.random.key(0), d=32, n_features=64, active=2.0, decay=1.0)
    got = score(trained(world, variants.topk("x", k=3, n_features=64, steps=2000)), world, jax.random.key(2))
    assert got.mcc > 0.9
    assert got.found > 0.75


@pytest.mark.slow
def test_l1_absorbs_the_parents_of_a_tree():
    """Children's decoder rows take up their parent, whose own latent is silent where they fire (Nabeshima 2024)."""
    world = tree(jax.random.key(0))
    config = variants.relu("x", l1=0.05, n_features=20, steps=2500, optimizer=Adam(learning_rate=3e-3))
    sae = trained(world, config)
    got = score(sae, world, jax.random.key(2), n=16_384)
    assert got.explained_variance > 0.95  # nothing that a reconstruction would show
    assert got.mcc < 0.9
    pairs = match(sae.W_dec, world.directions)
    c = np.asarray(cosines(sae.W_dec, world.directions))[pairs.rows[np.argsort(pairs.columns)]]
    children = [(parent + i, parent) for parent in (0, 4, 8) for i in (1, 2, 3)]
    assert np.median([c[child, parent] for child, parent in children]) > 0.5
    assert np.median(c[range(12, 20), range(12, 20)]) > 0.99  # features outside the trees are found


@pytest.mark.slow
def test_training_beats_chance_on_the_small_bench():
    world = small_bench(jax.random.key(0))
    got = score(trained(world, variants.batch_topk("x", k=6, n_features=128, steps=1000)), world, jax.random.key(2))
    assert got.mcc > 0.55  # chance: .40
    assert got.explained_variance > 0.5
