"""Harvesting and learning: what enters the buffer, what the step promises, and the exact resume."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.core.optimizers import unit_rows, without_parallel
from jax_interp.data.harvest import harvest, init_stream
from jax_interp.data.shuffling import draw, fill, init_buffer
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import BatchTopK, Gate, Jump, MatchingPursuit, ReLU, TopK
from jax_interp.dictionaries.forms import init_sae
from jax_interp.dictionaries.losses import AuxK, Reconstruction
from jax_interp.dictionaries.training.config import Adam, CrossLayerConfig, Resampling
from jax_interp.dictionaries.training.cross_layer import init_cross_layer_learner, learn_cross_layer
from jax_interp.dictionaries.training.normalisation import fold_centre, fold_decoder_norm, fold_scale, for_inference
from jax_interp.dictionaries.training.train import (
    export,
    init_learner,
    init_train_state,
    learn,
    train_dictionary,
    train_step,
)
from jax_interp.surgery import read
from jax_interp.training import Log

ADDRESS = "blocks.1.resid_post"
FIELDS = {"n_features": 64, "steps": 12, "buffer": 600, "dead_after": 300, "optimizer": Adam(warmup=2)}
CONFIG = variants.topk(ADDRESS, k=4, **FIELDS)


@pytest.fixture(scope="module")
def model():
    return toy()


def rows_of(model, i, where):
    tokens, keep = batch_at(i)
    value = read(model, ADDRESS, output=False)(tokens)[ADDRESS]
    return np.asarray(value)[np.asarray(keep if where else ~keep)]


def test_special_positions_never_enter_the_buffer(model):
    stream = init_stream(jax.random.key(0), model, ADDRESS, batch_at, 600)
    held = {row.tobytes() for row in np.asarray(stream.buffer.rows)}
    assert stream.buffer.capacity == 512  # whole batches of 8 · 16 tokens
    kept = {row.tobytes() for i in range(int(stream.cursor)) for row in rows_of(model, i, True)}
    assert held <= kept
    assert not held & {row.tobytes() for i in range(int(stream.cursor)) for row in rows_of(model, i, False)}


def test_inputs_are_scaled_to_mean_square_norm_d(model):
    stream = init_stream(jax.random.key(0), model, ADDRESS, batch_at, 600)
    x = np.asarray(stream.buffer.rows, np.float64) * float(stream.scale[0])
    np.testing.assert_allclose((x**2).sum(1).mean(), 16, rtol=1e-5)
    np.testing.assert_allclose(stream.mean, x.mean(0), atol=1e-5)
    np.testing.assert_allclose(stream.variance[0], ((x - x.mean(0)) ** 2).sum(1).mean(), rtol=1e-5)


def test_a_stream_without_a_position_to_keep_is_refused(model):
    nothing = lambda i: (batch_at(i)[0], jnp.zeros((8, 16), bool))
    with pytest.raises(UserError, match="exclude every position"):
        init_stream(jax.random.key(0), model, ADDRESS, nothing, 128)
    with pytest.raises(UserError, match="single layer"):
        harvest(model, "blocks.*.resid_post", batch_at(0)[0])


def test_a_draw_takes_distinct_rows_and_puts_fresh_ones_in_their_places():
    n, depth = 8, 4
    buffer = fill(init_buffer(n, depth, 1), jnp.arange(8.0)[:, None], jnp.arange(8) != 3)
    assert int(buffer.filled) == 7
    for i in range(1, 5):
        buffer = fill(buffer, (8.0 * i + jnp.arange(8.0))[:, None], jnp.ones(8, bool))
    assert int(buffer.filled) == buffer.capacity == 32
    before = set(np.asarray(buffer.rows)[:, 0])
    assert before == set(range(33)) - {3}
    fresh, keep = -1.0 - jnp.arange(8.0)[:, None], jnp.arange(8) % 4 != 0
    after, rows = draw(buffer, jax.random.key(0), fresh, keep)
    out, now = set(np.asarray(rows)[:, 0]), set(np.asarray(after.rows)[:, 0])
    assert len(out) == 8
    assert out <= before
    assert now - before == {-2.0, -3.0, -4.0, -6.0, -7.0, -8.0}  # the kept ones only
    assert len(before - now) == 6
    assert before - now <= out


def test_draws_are_uniform_over_the_buffer():
    buffer = fill(init_buffer(16, 4, 1), jnp.arange(64.0)[:, None], jnp.ones(64, bool))
    draws = jax.vmap(lambda key: draw(buffer, key, jnp.zeros((16, 1)), jnp.zeros(16, bool))[1])
    counts = np.bincount(np.asarray(draws(jax.random.split(jax.random.key(0), 4000))).astype(int).ravel())
    assert len(counts) == 64
    assert abs(counts - 1000).max() < 6 * 1000**0.5


def test_decoder_rows_stay_on_the_sphere_and_the_projected_gradient_is_tangent(model):
    W = unit_rows(jax.random.normal(jax.random.key(0), (20, 5)))
    tangent = without_parallel(jax.random.normal(jax.random.key(1), (20, 5)), W)
    np.testing.assert_allclose((tangent * W).sum(1), np.zeros(20), atol=1e-6)
    assert (unit_rows(jnp.zeros((2, 3))) == 0).all()
    state = init_train_state(CONFIG, model, batch_at)
    for i in range(3):
        state, _ = jax.jit(partial(train_step, CONFIG))(state, batch_at(5 + i), model)
    norms = jnp.linalg.norm(state.learner.dictionary.W_dec, axis=1)
    np.testing.assert_allclose(norms, np.ones(64), rtol=1e-6)


@pytest.mark.slow
def test_counters_count_tokens_since_a_latent_fired():
    learner = init_learner(CONFIG, jax.random.key(0), (16,), jnp.zeros(16))
    x = jnp.broadcast_to(learner.dictionary.W_dec[7], (10, 16))  # fires latent 7 and three more
    after, metrics = learn(CONFIG, learner, x, jnp.ones(1))
    fired = np.asarray((learner.dictionary.encode(x) > 0).any(0))
    assert fired[7]
    np.testing.assert_array_equal(after.since_fired, np.where(fired, 0, 10))
    assert int(metrics["tokens"]) == 10
    assert int(metrics["dead"]) == 0
    long_ago = dataclasses.replace(learner, since_fired=jnp.full(64, CONFIG.dead_after + 1))
    after, metrics = learn(CONFIG, long_ago, x, jnp.ones(1))
    assert int(metrics["dead"]) == 64
    assert np.isfinite(float(metrics["aux_k"]))
    assert int(after.since_fired.min()) == 0


@pytest.mark.slow
def test_auxk_brings_latents_back(model):
    """Latents silenced by a large negative bias would stay dead for ever without the auxiliary loss."""

    def alive(aux_coefficient):
        loss = (Reconstruction(), AuxK(aux_coefficient))
        adam = Adam(learning_rate=0.02, warmup=2)
        config = dataclasses.replace(CONFIG, steps=150, dead_after=100, optimizer=adam, loss=loss)
        state = init_train_state(config, model, batch_at)
        # a third of the latents point away from everything the model produces
        b_enc = jnp.where(jnp.arange(64) < 20, -3.0, 0.0)
        sae = dataclasses.replace(state.learner.dictionary, b_enc=b_enc)
        state = dataclasses.replace(state, learner=dataclasses.replace(state.learner, dictionary=sae))
        step = jax.jit(partial(train_step, config))
        for i in range(config.steps):
            state, _ = step(state, batch_at(10 + i), model)
        return int((state.learner.since_fired[:20] <= 100).sum())

    assert alive(1 / 32) > alive(0.0)


def test_learning_reduces_the_unexplained_variance(model):
    log = []
    config = dataclasses.replace(CONFIG, steps=150)
    sae = train_dictionary(config, model, batch_at, log=Log(every=50, on_record=log.append, quiet=True))
    fvu = [record["fvu"] for record in log]
    assert fvu[-1] < 0.6 * fvu[0] < fvu[0]
    assert log[-1]["tokens"] == 150 * 128
    tokens, keep = batch_at(999)
    x = np.asarray(harvest(model, ADDRESS, tokens), np.float64)[np.asarray(keep).reshape(-1)]
    x_hat = np.asarray(sae(jnp.asarray(x, jnp.float32)), np.float64)
    held_out = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    np.testing.assert_allclose(held_out, fvu[-1], rtol=0.2)  # on raw activations


ACTIVATIONS = {
    "relu": lambda key: ReLU(),
    "topk": lambda key: TopK(5),
    "jumprelu": lambda key: Jump(jax.random.normal(key, (128,))),
    "gated": lambda key: Gate(*jax.random.normal(key, (2, 128))),
    "batch topk": lambda key: BatchTopK(5, threshold=jnp.float32(0.7)),
    "weighted topk": lambda key: TopK(5, weighted=True),
    "weighted batch topk": lambda key: BatchTopK(5, weighted=True, threshold=jnp.float32(0.7)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_folding_changes_no_reconstruction(name):
    """The input's scale, the decoder's norms, the centre: each out of the way, the function the same."""
    keys = jax.random.split(jax.random.key(0), 5)
    sae = init_sae(keys[0], 16, 128, ACTIVATIONS[name](keys[1]), jax.random.normal(keys[2], (16,)))
    sae = dataclasses.replace(sae, b_enc=jax.random.normal(keys[3], (128,)))
    x = 40 * jax.random.normal(keys[4], (50, 16))
    scale, near = jnp.float32(0.037), {"rtol": 1e-3, "atol": 1e-3}
    folded = jax.jit(fold_scale)(sae, jnp.full(16, scale), jnp.full(16, scale), scale)
    np.testing.assert_allclose(folded(x), sae(x * scale) / scale, **near)
    np.testing.assert_allclose(folded.encode(x), sae.encode(x * scale) / scale, **near)
    np.testing.assert_allclose(folded.W_dec, sae.W_dec, rtol=2e-7)
    # another value is written than read, each with its own scale: latents in the units of what is written
    read, write = jnp.linspace(0.5, 2, 16), jnp.linspace(3, 1, 16)
    other = dataclasses.replace(sae, centred=False)
    folded = fold_scale(other, read, write, jnp.float32(2))
    np.testing.assert_allclose(folded(x), other(x * read[None]) / write[None], **near)
    np.testing.assert_allclose(folded.encode(x), other.encode(x * read[None]) / 2, **near)
    np.testing.assert_allclose(fold_centre(sae)(x), sae(x), **near)
    loose = dataclasses.replace(sae, W_dec=sae.W_dec * jnp.linspace(0.2, 3, 128)[:, None])
    folded = fold_scale(dataclasses.replace(loose, centred=False), read, write, jnp.float32(2))
    want = dataclasses.replace(loose, centred=False)(x * read[None]) / write[None]
    np.testing.assert_allclose(folded(x), want, **near)
    np.testing.assert_allclose(for_inference(folded)(x), want, **near)
    if name != "topk":  # its choice is by pre-activation
        np.testing.assert_allclose(fold_decoder_norm(loose)(x), loose(x), **near)
        np.testing.assert_allclose(jnp.linalg.norm(fold_decoder_norm(loose).W_dec, axis=1), np.ones(128), rtol=1e-5)


@pytest.mark.slow
def test_seeds_are_one_vmap_over_one_stream(model):
    state = init_train_state(CONFIG, model, batch_at)
    x = state.stream.buffer.rows[:128] * state.stream.scale[0]
    keys = jax.random.split(jax.random.key(1), 3)
    make = partial(init_learner, CONFIG, widths=(16,), mean=state.stream.mean)
    many = jax.vmap(make)(keys)
    step = jax.jit(partial(learn, CONFIG))
    each = jax.jit(jax.vmap(partial(learn, CONFIG), (0, None, None)))
    for _ in range(2):
        many, metrics = each(many, x, state.stream.variance)
    for n, key in enumerate(keys):
        one = make(key)
        for _ in range(2):
            one, alone = step(one, x, state.stream.variance)
        np.testing.assert_allclose(metrics["loss"][n], alone["loss"], rtol=1e-5)
        for a, b in zip(jax.tree.leaves(one.dictionary), jax.tree.leaves(many.dictionary), strict=True):
            np.testing.assert_allclose(a, b[n], atol=2e-5)


def test_the_step_compiles_once(model):
    state = init_train_state(CONFIG, model, batch_at)
    step = jax.jit(partial(train_step, CONFIG))
    for i in range(3):
        state, _ = step(state, batch_at(i), model)
    assert step._cache_size() == 1
    assert export(CONFIG, state).W_dec.dtype == jnp.float32


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"activation": TopK(65)}, "k=65 latents of n_features=64"),
        ({"steps": 0}, "steps=0"),
        ({"buffer": -5}, "buffer=-5"),
        ({"dead_after": 0}, "dead_after=0"),
        ({"decoder": "fre"}, "decoder='fre'"),
        ({"activation": MatchingPursuit(4), "decoder": "free"}, "rows must have norm 1"),
        ({"activation": MatchingPursuit(4), "address": ("a", "b")}, "for SAEs of one value"),
        ({"activation": MatchingPursuit(4)}, "AuxK trains the encoder of dead latents"),
        ({"loss": ()}, "loss is empty"),
        ({"skip": True}, "skip with writes=None"),
        ({"writes": ()}, "names no value"),
    ],
)
def test_a_config_that_cannot_be_is_refused(bad, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(CONFIG, **bad)


def test_settings_that_cannot_be_are_refused():
    for make, says in (
        (lambda: Adam(decay=2.0), "decay=2.0"),
        (lambda: Adam(learning_rate=-1.0), "learning_rate=-1.0"),
        (lambda: Adam(clip=0.0), "clip=0.0"),
        (lambda: Resampling(every=0), "every=0"),
    ):
        with pytest.raises(UserError, match=says):
            make()
    across: Any = CrossLayerConfig(("a", "b"), n_features=64)
    with pytest.raises(UserError, match="a CrossLayerConfig is for train_cross_layer"):
        train_dictionary(across, toy(), batch_at)
    with pytest.raises(UserError, match=r"CrossLayerConfig has no 'centred'.* It has address, "):
        variants.cross_layer(("a", "b"), None, centred=True)
    with pytest.raises(UserError, match="did you mean 'n_features'"):
        variants.topk("a", n_feature=64)


def test_a_gradient_is_clipped_in_the_units_of_the_publications():
    """Whatever the reconstruction is divided by, `clip` is the norm that the gradient of an SSE is cut to. With b1 =
    b2 = 0 and a huge epsilon the steps are the gradient."""
    eps, x, V = 1e6, 20 * jax.random.normal(jax.random.key(1), (32, 16)), jnp.asarray([7.0])
    adam = Adam(learning_rate=eps, b1=0.0, b2=0.0, eps=eps, warmup=0, decay=0.0, offset_rate=1.0, clip=0.5)
    for kind, unit in (("sse", 1.0), ("fvu", 7.0), ("mse", 16.0)):
        config = dataclasses.replace(
            CONFIG, loss=(Reconstruction(kind=kind),), decoder="free", centred=False, optimizer=adam
        )
        learner = init_learner(config, jax.random.key(0), (16,), jnp.zeros(16))
        many = CrossLayerConfig((ADDRESS,), **FIELDS | {"loss": config.loss, "optimizer": adam, "activation": TopK(4)})
        across = init_cross_layer_learner(many, jax.random.key(0), (16,), jnp.zeros(16))
        for before, step in ((learner, partial(learn, config)), (across, partial(learn_cross_layer, many))):
            after, _ = jax.jit(step)(before, x, V)
            moved = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), after.dictionary, before.dictionary)
            np.testing.assert_allclose(unit * sum(jax.tree.leaves(moved)) ** 0.5, 0.5, rtol=1e-3)


def test_products_take_the_precision_that_is_asked_for_and_weights_stay_float32():
    for config in (CONFIG, variants.gated(ADDRESS, **FIELDS)):
        config = dataclasses.replace(config, matmul="bfloat16")
        learner = init_learner(config, jax.random.key(0), (16,), jnp.zeros(16))
        step = jax.make_jaxpr(partial(learn, config))(learner, jnp.ones((8, 16)), jnp.ones(1))
        products = re.findall(r"dot_general\[.*?\]\s", str(step), re.DOTALL)
        assert len(products) >= 4
        assert all("BF16_BF16_F32" in p for p in products)
        kinds = {leaf.dtype for leaf in jax.tree.leaves(learner.dictionary)}
        assert kinds == {jnp.dtype("float32")}
