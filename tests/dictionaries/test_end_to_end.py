"""End-to-end training: the loss against float64 written from the equation, its laws, the exact resume, the claim."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.config_json import from_json, to_json, upgrade
from jax_interp.core.errors import UserError
from jax_interp.dictionaries import evaluate, train_dictionary, variants
from jax_interp.dictionaries.activations import BatchTopK, ReLU, TopK
from jax_interp.dictionaries.forms import init_sae
from jax_interp.dictionaries.losses import L1, AuxK, Reconstruction
from jax_interp.dictionaries.training.config import Adam, EndToEndSAEConfig, Resampling
from jax_interp.dictionaries.training.end_to_end import (
    EndToEndConfig,
    EndToEndState,
    end_to_end_step,
    export_end_to_end,
    init_end_to_end_state,
    loss,
    train_end_to_end,
)
from jax_interp.dictionaries.training.initialise import new_learner
from jax_interp.dictionaries.training.spliced import TrainingSplice, kept_rows
from jax_interp.models import Config
from jax_interp.models.decoder import init
from jax_interp.models.language_modelling import Optimization, init_state, train_step
from jax_interp.surgery import Splice, at, edit, replan
from jax_interp.training import QUIET, fit

SITES = ("blocks.0.resid_post", "blocks.1.resid_post")
FIELDS = {"n_features": 24, "dead_after": 300, "optimizer": Adam(warmup=2)}
RUN = {"steps": 12, "buffer": 300}
RELU = [EndToEndSAEConfig(site, activation=ReLU(), loss=(L1(0.05, warmup=0.0),), **FIELDS) for site in SITES]


@pytest.fixture(scope="module")
def model():
    return toy()


def test_rows_that_are_not_kept_are_replaced_by_kept_ones():
    keep = jnp.asarray([[False, True, True, False], [True, True, False, True]])
    kept = {1, 2, 4, 5, 7}
    for seed in range(5):
        rows, n = kept_rows(keep, jax.random.key(seed))
        assert int(n) == 5
        assert rows[:5].tolist() == sorted(kept)
        assert set(rows[5:].tolist()) < kept
        assert len(set(rows[5:].tolist())) == 3
    rows, n = kept_rows(jnp.ones((2, 4), bool), jax.random.key(0))
    assert rows.tolist() == list(range(8))
    assert int(n) == 8


# ---- the equation ---------------------------------------------------------------------------------------------------


def reference(params, model, tokens, keep, rows, *, scales, l1, output, beta, balance, last_variance):
    """Written from the paper, without surgery. A dictionary works on s·x, its rows are `rows`."""

    def forward(spliced):
        x, terms, errors = model.E[tokens], 0.0, 0.0
        for i, block in enumerate(model.blocks):
            before = jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
            x = x + jnp.tanh((x + before) @ block.W)
            if spliced and i < len(params):
                p, s = params[i], scales[i]
                f = jax.nn.relu((s * x - p["b_dec"]) @ p["W_enc"] + p["b_enc"])
                x_hat = (f @ p["W_dec"] + p["b_dec"]) / s
                terms = terms + l1 * f.reshape(len(rows), -1)[rows].sum(1).mean()
                errors = errors + ((s * (x - x_hat)).reshape(len(rows), -1)[rows] ** 2).sum(1).mean()
                x = jnp.where(keep[:, :, None], x_hat, x)
        return jax.nn.log_softmax(x @ model.U, axis=-1), x, terms, errors

    (p, a, _, _), (q, a_hat, terms, errors) = forward(False), forward(True)
    if output == "kl":
        out = ((jnp.exp(p) * (p - q)).sum(-1) * keep).sum() / keep.sum()
    else:
        counted = keep[:, :-1] & keep[:, 1:]
        picked = jnp.take_along_axis(q[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
        out = -(picked * counted).sum() / counted.sum()
    out = out + beta * (((a_hat - a) ** 2).sum(-1) * keep).sum() / keep.sum() / last_variance
    if balance is not None:
        alpha = jax.lax.stop_gradient(errors / (out + 1e-8))
        out = (errors + balance * alpha * out) / (1 + balance)
    return out + terms


@pytest.mark.parametrize(("output", "beta", "balance"), [("kl", 0.7, 0.5), ("ce", 0.0, None)], ids=["kl", "ce"])
def test_loss_and_gradient_equal_the_equation(model, output, beta, balance):
    tokens, keep = batch_at(3)
    terms = (L1(0.05, warmup=0.0), *(() if balance is None else (Reconstruction(kind="sse"),)))
    config = EndToEndConfig(
        tuple(dataclasses.replace(one, loss=terms) for one in RELU),
        output=output,
        downstream=("blocks.2.resid_post",) if beta else (),
        beta=beta,
        balance=balance,
        **RUN,
    )
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model = jax.tree.map(lambda a: a.astype(jnp.float64), model)
        draw = np.random.default_rng(0).standard_normal
        shapes = {"W_enc": (16, 24), "b_enc": (24,), "W_dec": (24, 16), "b_dec": (16,)}
        params = [{name: jnp.asarray(draw(shape) * 0.3) for name, shape in shapes.items()} for _ in SITES]
        make = lambda p: init_sae(jax.random.key(0), 16, 24, ReLU())
        dictionaries = tuple(dataclasses.replace(make(p), **p) for p in params)
        scales = jnp.asarray([0.8, 1.3])
        learners = tuple(
            new_learner(d, one.optimizer, config.steps, (24,), jax.random.key(0))
            for one, d in zip(config.dictionaries, dictionaries, strict=True)
        )
        state = EndToEndState(learners, scales, jnp.asarray([3.0, 4.0]), jnp.asarray([5.0])[: len(config.downstream)],
                              jax.random.key(9))  # fmt: skip
        rows = np.asarray(kept_rows(keep, jax.random.split(state.key)[1])[0])
        assert len(set(rows.tolist())) < keep.size  # there is padding
        ours = jax.jit(jax.value_and_grad(lambda d: loss(config, d, state, (tokens, keep), model)[0]))
        options = {
            "scales": scales,
            "l1": 0.05,
            "output": output,
            "beta": beta,
            "balance": balance,
            "last_variance": 5.0,
        }
        theirs = jax.jit(jax.value_and_grad(lambda p: reference(p, model, tokens, keep, rows, **options)))
        (value, grads), (wanted, wanted_grads) = ours(dictionaries), theirs(params)
        np.testing.assert_allclose(value, wanted, rtol=1e-10)
        for grad, want in zip(grads, wanted_grads, strict=True):
            for name in want:
                np.testing.assert_allclose(getattr(grad, name), want[name], rtol=1e-7, atol=1e-11, err_msg=name)


# ---- laws -----------------------------------------------------------------------------------------------------------


def test_what_is_trained_is_what_is_exported(model):
    """The spliced run of the step is that of `Splice` with the exported dictionaries, padding left alone."""
    state = init_end_to_end_state(EndToEndConfig(tuple(RELU), **RUN), model, batch_at)
    tokens, keep = batch_at(5)
    rows, n = kept_rows(keep, jax.random.key(0))
    shown = [
        at(site, TrainingSplice(one.dictionary, s, rows, n)) for site, one, s in zip(SITES, state.learners, state.scale)
    ]
    spliced = [at(site, Splice(d), where=keep) for site, d in zip(SITES, export_end_to_end(state), strict=True)]
    run = jax.jit(lambda *models: [one(tokens) for one in models])
    got, want, clean = run(edit(model, *shown), edit(model, *spliced), model)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert not np.allclose(got, clean, atol=1e-2)
    np.testing.assert_allclose(got[:, 0], clean[:, 0], atol=1e-5)  # BOS is not kept


def test_latents_that_are_silent_grow_older_by_the_tokens_that_are_kept(model):
    """Rows that stand in for padding are seen again: they are no new tokens."""
    config = EndToEndConfig((RELU[0],), **RUN)
    state = init_end_to_end_state(config, model, batch_at)
    one = state.learners[0].dictionary
    silent = dataclasses.replace(one, b_enc=jnp.where(jnp.arange(24) < 5, -100.0, 100.0))
    state = dataclasses.replace(state, learners=(dataclasses.replace(state.learners[0], dictionary=silent),))
    tokens, keep = batch_at(5)
    assert 0 < int(keep.sum()) < keep.size
    after, _ = jax.jit(partial(end_to_end_step, config))(state, (tokens, keep), model)
    np.testing.assert_array_equal(after.learners[0].since_fired, np.where(np.arange(24) < 5, int(keep.sum()), 0))


def test_going_on_from_a_trained_dictionary_begins_where_it_is(model):
    given = tuple(init_sae(jax.random.key(i), 16, 24, TopK(4), jnp.ones(16)) for i in range(2))
    config = EndToEndConfig(
        tuple(EndToEndSAEConfig(site, activation=TopK(4), **FIELDS) for site in SITES), balance=1.0, **RUN
    )
    back = export_end_to_end(init_end_to_end_state(config, model, batch_at, given))
    for got, want in zip(jax.tree.leaves(back), jax.tree.leaves(given), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_scanned_blocks_and_values_of_heads_train_alike():
    model = init(Config(n_layers=3, d_model=16, n_heads=2, d_mlp=16, vocab_size=40, n_ctx=16), jax.random.key(0))
    loss_terms = (AuxK(), Reconstruction())
    sites = [
        EndToEndSAEConfig("blocks.0.attn.z", activation=TopK(4), loss=loss_terms, **FIELDS),
        EndToEndSAEConfig("blocks.1.resid_post", activation=BatchTopK(4), loss=loss_terms, **FIELDS),
    ]
    config = EndToEndConfig(tuple(sites), downstream=("blocks.2.mlp_out", "ln_final.normalized"), **RUN)
    state = init_end_to_end_state(config, model, batch_at)
    step = jax.jit(partial(end_to_end_step, config))
    (one, metrics), (other, others) = (step(state, batch_at(0), m) for m in (model, replan(model, "0:2")))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.allclose(a, b, rtol=1e-4, atol=1e-5)), metrics, others))
    for a, b in zip(jax.tree.leaves(export_end_to_end(one)), jax.tree.leaves(export_end_to_end(other)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert float(metrics["downstream"]) > 0
    assert float(metrics["dictionary"]["0"]["l0"]) <= 4


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"dictionaries": ()}, "at least one"),
        ({"dictionaries": (RELU[0], RELU[0])}, "different addresses"),
        ({"dictionaries": (variants.topk(SITES[0]),)}, r"is a DictionaryConfig: give .*EndToEndSAEConfig.of"),
        ({"steps": 0}, "steps=0"),
        ({"balance": 1.0}, "has no such term"),
    ],
)
def test_a_config_that_cannot_be_is_refused(bad, says):
    with pytest.raises(UserError, match=says):
        EndToEndConfig(**({"dictionaries": tuple(RELU)} | bad))


def test_a_config_of_an_earlier_version_is_read_as_what_it_meant():
    """It had a whole `DictionaryConfig` for each dictionary, with the steps of them all and the buffer."""
    first = dataclasses.replace(RELU[0], resampling=Resampling(every=3))
    config = EndToEndConfig((first, RELU[1]), downstream=("blocks.2.resid_post",), **RUN)
    older = to_json(config)
    steps, buffer = older.pop("steps"), older.pop("buffer")
    for one in older["dictionaries"]:
        one |= {"type": "DictionaryConfig", "writes": None, "skip": False, "few": [64, 256], "matmul": None}
        one |= {"steps": steps, "buffer": buffer}
    assert upgrade(json.loads(json.dumps(older))) == to_json(config)
    assert from_json(EndToEndConfig, older) == config == from_json(EndToEndConfig, to_json(config))


# ---- the claim ------------------------------------------------------------------------------------------------------

VOCAB = 24
NEXT = 2.0 * np.random.default_rng(0).standard_normal((VOCAB, VOCAB, VOCAB))


@jax.jit
def language(key):
    """[64, 32] tokens of a random language: what comes next depends on the last two."""
    keys, table = jax.random.split(key, 33), jnp.asarray(NEXT, jnp.float32)

    def step(last, key):
        drawn = jax.random.categorical(key, table[last])
        return (last[1], drawn), drawn

    first = jax.random.randint(keys[0], (2, 64), 0, VOCAB)
    return jax.lax.scan(step, (first[0], first[1]), keys[1:])[1].T


@pytest.mark.slow
def test_end_to_end_costs_the_model_less_at_equal_l0_and_is_a_worse_copy():
    """Braun et al. 2024 in small, before the last block: at matched L0 the cross-entropy rises less than with a
    dictionary trained locally, while its reconstructions are shorter and further from the value."""
    tokens = lambda i: language(jax.random.fold_in(jax.random.key(1), i))
    shape = Config(
        n_layers=3, d_model=32, n_heads=4, d_mlp=128, vocab_size=VOCAB, n_ctx=32, gated_mlp=False, act="gelu"
    )
    optimizer = Optimization(learning_rate=3e-3, warmup=50).build(600)
    state = init_state(init(shape, jax.random.key(0), stacked=False), optimizer)
    model = fit(train_step(optimizer), state, tokens, steps=600, log=QUIET).model

    site, everything = "blocks.2.resid_pre", jnp.ones((64, 32), bool)
    batch = lambda i: (tokens(10_000 + i), everything)
    fields = {
        "n_features": 128,
        "steps": 400,
        "buffer": 8192,
        "optimizer": Adam(learning_rate=2e-3),
        "resampling": None,
    }
    held_out = [(tokens(5000 + i), everything) for i in range(4)]

    def figures(sae):
        found = evaluate(model, site, sae, held_out)
        ce, rec = found.cross_entropy, found.reconstruction
        return np.array([rec.l0, ce.spliced - ce.clean, rec.l2_ratio, rec.mse_d])

    local = [train_dictionary(variants.relu(site, l1, **fields), model, batch, log=QUIET) for l1 in (0.08, 0.03)]
    own = EndToEndSAEConfig(site, n_features=128, activation=ReLU(), loss=(L1(0.03),), optimizer=fields["optimizer"])
    config = EndToEndConfig((own,), steps=400, buffer=8192)
    (whole,) = train_end_to_end(config, model, batch, log=QUIET)
    sparse, dense, (l0, ce, l2_ratio, mse) = *map(figures, local), figures(whole)
    assert sparse[0] < l0 < dense[0]
    share = (l0 - sparse[0]) / (dense[0] - sparse[0])
    local_ce, local_l2_ratio, local_mse = (sparse + share * (dense - sparse))[1:]  # at this L0
    assert 0 < ce < 0.75 * local_ce
    assert l2_ratio < local_l2_ratio
    assert mse > local_mse
