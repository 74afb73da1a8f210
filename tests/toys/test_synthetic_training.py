"""Training on known worlds: what the papers that made them report."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import Adam, train_dictionary, variants
from jax_interp.dictionaries.evaluation.recovery import score
from jax_interp.dictionaries.evaluation.similarity import cosines, match
from jax_interp.surgery import read
from jax_interp.toys.synthetic import as_model, sharkey, small_bench, tree, two_models
from jax_interp.toys.synthetic.shrinkage import shrunk
from jax_interp.training import QUIET


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
    return train_dictionary(config, *as_model(world, jax.random.key(1)), log=QUIET)


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


@pytest.mark.slow
def test_crosscoders_shrink_as_their_losses_say():
    """Features in two models with strengths (1, 1), (1, .3), (1, 0), (0, 1): what a crosscoder that has learnt one of
    them makes of it. The L1 of decoder norms takes λ/2 off each model's part, and with it all of the .3; BatchTopK
    takes nothing."""
    strengths = np.array([(1, 1), (1, 0.3), (1, 0), (0, 1)] * 6)
    world = two_models(jax.random.key(0), tuple(map(tuple, strengths)), d=24)
    model, batch_at = as_model(world, jax.random.key(1), sites=("base", "chat"), batch=512)
    # the trainer scales each value to E‖x‖² = 24 and divides the SSE by the variance, V
    scales = np.sqrt(24 / (strengths**2).mean(0))
    x = np.asarray(world.sample(jax.random.key(5), 8192)[0], np.float64) * np.repeat(scales, 24)
    V = x.var(0).sum()
    fields = {"n_features": 24, "steps": 1500, "optimizer": Adam(learning_rate=3e-3), "buffer": 4096}
    configs = {
        "l1": variants.crosscoder(("base", "chat"), l1=4 / V, **fields),
        "none": variants.batch_topk_crosscoder(("base", "chat"), k=1, **fields),
    }
    wanted = {"l1": shrunk(strengths * scales, 4.0, "l1") / scales, "none": strengths}
    rows = np.asarray(world.directions, np.float64).reshape(24, 2, 24)
    unit = (rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), 1e-9)).sum(1)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for name, config in configs.items():
        crosscoder = train_dictionary(config, model, batch_at, log=QUIET)
        made = np.asarray(crosscoder(world.directions), np.float64).reshape(24, 2, 24)
        part = np.einsum("fsd,fd->fs", made, unit)
        learnt = np.abs(part - wanted[name]).max(1) < 0.04
        missed = part.max(1) < 0.45 * wanted[name].max(1)  # what no latent has taken, the bias and neighbours aside
        assert learnt.sum() >= 12, name
        assert (learnt | missed).mean() > 0.85, name
        weak = learnt & (strengths[:, 1] == 0.3)
        assert weak.any(), name
        np.testing.assert_allclose(part[weak, 1], 0 if name == "l1" else 0.3, atol=0.04)
