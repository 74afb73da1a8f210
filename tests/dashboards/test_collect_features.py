"""The page of a dictionary's features: effects of ablations, decoder directions, meshes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.dashboards import Names, PageOptions, collect_features, collect_units, logit_effect
from jax_interp.dashboards.decoder_directions import decoder_neighbours, logit_lens
from jax_interp.data.harvest import harvest
from jax_interp.dictionaries.activations import AbsTopK, TopK
from jax_interp.dictionaries.forms import init_sae
from jax_interp.training.sharding import make_mesh

ADDRESS = "blocks.1.resid_pre"
MODEL, BATCHES = toy(), [batch_at(i) for i in range(3)]
SAE = init_sae(jax.random.key(1), 16, 24, TopK(4), jnp.zeros(16))
OPTIONS = PageOptions(
    top=4, sample=8, uniform=3, quantiles=2, per_quantile=2, before=5, after=3, promoted=5, logit_bins=6, neighbours=3,
    loss_examples=2, token_examples=2,
)  # fmt: skip
NAMES = Names("latent", "Latents <of> a toy", "toy", "noise")


@pytest.fixture(scope="module")
def data():
    return collect_features(MODEL, ADDRESS, SAE, BATCHES, OPTIONS, unembed=MODEL.U, names=NAMES)


def group(data, label):
    return next(one for one in data.examples if one.label == label)


def measured(one, n):
    """(unit, window, sequence, position) of the measured examples."""
    places = one.windows.place[:, :n]
    return [(u, k, *places[u, k].tolist()) for u, k in np.argwhere(places[..., 0] >= 0)]


def whole(i):
    return (np.asarray(x)[i % 8] for x in BATCHES[i // 8])


def through(block, x):
    before = np.pad(x, ((1, 0), (0, 0)))[:-1]
    return x + np.tanh((x + before) @ np.asarray(block.W, np.float64))


def rest_of_the_model(x):
    """Logits from the residual stream before block 1, in NumPy."""
    for block in MODEL.blocks[1:]:
        x = through(block, x)
    return x @ np.asarray(MODEL.U, np.float64)


def residual(embedded):
    return through(MODEL.blocks[0], embedded)


def losses(logits, tokens):
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_p[np.arange(len(tokens) - 1), tokens[1:]]


def test_names_and_figures(data):
    assert (data.name, data.title, data.model, data.address, data.text) == (
        "latent", "Latents <of> a toy", "toy", ADDRESS, "noise",
    )  # fmt: skip
    rows = np.concatenate(
        [np.asarray(SAE.encode(harvest(MODEL, ADDRESS, t)))[np.asarray(k).ravel()] for t, k in BATCHES]
    )
    np.testing.assert_array_equal(data.firings, (rows > 0).sum(0))
    np.testing.assert_allclose(data.max_activation, rows.max(0), rtol=1e-5)


def test_the_effect_on_the_loss_is_that_of_the_model_without_the_feature(data):
    """x - z_u d_u goes through the rest of the model, in NumPy and float64."""
    W_dec, next_changes = np.asarray(SAE.W_dec, np.float64), {}
    for label in ("top", "uniform"):
        one = group(data, label)
        for unit, k, i, position in measured(one, 2):
            tokens, keep = whole(i)
            x = residual(np.asarray(MODEL.E, np.float64)[tokens])
            z = np.asarray(SAE.encode(jnp.asarray(x, jnp.float32)), np.float64)[:, unit]
            change = losses(rest_of_the_model(x - z[:, None] * W_dec[unit]), tokens) - losses(
                rest_of_the_model(x), tokens
            )
            change = np.where(keep, np.append(0, change), 0)
            columns = np.arange(position - 5, position + 4)
            inside = (columns >= 0) & (columns < len(tokens))
            expected = np.where(inside, change[np.clip(columns, 0, len(tokens) - 1)], 0)
            np.testing.assert_allclose(one.loss_effects[unit, k], expected, atol=3e-5)
            if label == "uniform" and position + 1 < len(tokens) and keep[position + 1]:
                next_changes.setdefault(unit, []).append(change[position + 1])
        assert np.isnan(one.loss_effects[:, 2:][one.windows.place[:, 2:, 0] >= 0]).all()
    means = [np.mean(next_changes[u]) if u in next_changes else np.nan for u in range(24)]
    np.testing.assert_allclose(data.loss_effect, means, atol=3e-5)
    assert np.nanmax(abs(data.loss_effect)) > 0.01


def test_a_feature_of_a_transcoder_is_ablated_where_it_writes():
    writes, one_unit = "blocks.1.resid_post", 5
    options = PageOptions(units=(one_unit,), top=2, before=5, after=3, loss_examples=2, writes=writes, co_firing=0)
    transcoder = dataclasses.replace(SAE, centred=False)
    one = group(collect_features(MODEL, ADDRESS, transcoder, BATCHES, options), "top")
    for unit, k, i, position in measured(one, 2):
        tokens, keep = whole(i)
        x = residual(np.asarray(MODEL.E, np.float64)[tokens])
        z = np.asarray(transcoder.encode(jnp.asarray(x, jnp.float32)), np.float64)[:, one_unit]
        written = through(MODEL.blocks[1], x)
        last = lambda y: losses(through(MODEL.blocks[2], y) @ np.asarray(MODEL.U, np.float64), tokens)  # noqa: B023
        change = last(written - z[:, None] * np.asarray(SAE.W_dec[one_unit], np.float64)) - last(written)
        change = np.where(keep, np.append(0, change), 0)
        columns = np.arange(position - 5, position + 4)
        expected = [change[c] if 0 <= c < len(tokens) else 0 for c in columns]
        np.testing.assert_allclose(one.loss_effects[unit, k], expected, atol=3e-5)
        assert abs(one.loss_effects[unit, k]).max() > 1e-3


def test_the_effect_of_a_token_is_that_of_its_embedding(data):
    one, checked = group(data, "top"), 0
    for unit, k, i, position in measured(one, 2)[:12]:
        tokens, _ = whole(i)
        embedded = np.asarray(MODEL.E, np.float64)[tokens]
        score = lambda e: float(SAE.encode(jnp.asarray(residual(e), jnp.float32))[position, unit])  # noqa: B023
        for j in range(9):
            at = position - 5 + j
            if not 0 <= at <= position:
                assert one.token_effects[unit, k, j] == 0
                continue
            without = embedded.copy()
            without[at] = 0
            if one.windows.tokens[unit, k, j] >= 0:
                np.testing.assert_allclose(one.token_effects[unit, k, j], score(without) - score(embedded), atol=2e-5)
                checked += 1
        # block 0 looks one token back: the tokens before that have no effect
        assert abs(one.token_effects[unit, k, :4]).max() < 1e-6
    assert checked > 30


def test_promoted_tokens_are_those_of_one_feature_at_a_time(data):
    for unit in (0, 7, 23):
        effects = np.asarray(SAE.W_dec[unit], np.float64) @ np.asarray(MODEL.U, np.float64)
        effects -= effects.mean()
        order = np.argsort(-effects)
        for found, expected in ((data.promoted, order[:5]), (data.suppressed, order[::-1][:5])):
            np.testing.assert_array_equal(found.tokens[unit], expected)
            np.testing.assert_allclose(found.effects[unit], effects[expected], atol=1e-5)
        promoted, suppressed = logit_effect(SAE, unit, MODEL.U, n=5)
        np.testing.assert_array_equal([promoted.tokens, suppressed.tokens], [order[:5], order[::-1][:5]])
        edges = data.logit_histogram.edges[unit]
        np.testing.assert_allclose([edges[0], edges[-1]], [effects.min(), effects.max()], atol=1e-5)
        counts = np.histogram(effects, edges)[0]
        assert abs(data.logit_histogram.counts[unit] - counts).sum() <= 2  # one value can round across an edge
    assert (data.logit_histogram.counts.sum(axis=1) == 40).all()


def test_pieces_of_directions_change_nothing():
    whole, parts = (logit_lens(SAE.W_dec, None, MODEL.U, 4, 5, piece) for piece in (24, 7))
    for one, other in zip(whole, parts):
        for name, value in vars(one).items():
            np.testing.assert_allclose(getattr(other, name), value, atol=1e-6)
    assert np.array_equal(decoder_neighbours(SAE.W_dec, None, 3, 7).units, decoder_neighbours(SAE.W_dec, None, 3).units)


def test_neighbours_are_cosines(data):
    unit = np.asarray(SAE.W_dec, np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T - 9 * np.eye(24)
    np.testing.assert_array_equal(data.neighbours.units, np.argsort(-cosines, axis=1)[:, :3])
    np.testing.assert_allclose(data.neighbours.values, -np.sort(-cosines, axis=1)[:, :3], atol=1e-6)


def test_chosen_features_are_rows_of_all_features(data):
    some = collect_features(
        MODEL, ADDRESS, SAE, BATCHES, dataclasses.replace(OPTIONS, units=(9, 2), co_firing=0), unembed=MODEL.U
    )
    np.testing.assert_array_equal(some.units, [9, 2])
    all_of = dict(data.arrays())
    for name, value in some.arrays():
        if name not in ("units", "activation_histogram.edges", "activation_histogram.counts"):
            np.testing.assert_allclose(value, all_of[name][[9, 2]], atol=2e-5, err_msg=name)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real")
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("sizes", [{"data": 2}, {"tensor": 2}, {"data": 2, "tensor": 2}])
def test_a_mesh_gives_what_one_device_gives(sizes, explicit):
    options = dataclasses.replace(OPTIONS, loss_examples=1, token_examples=1, piece=10)
    one = collect_features(MODEL, ADDRESS, SAE, BATCHES, options, unembed=MODEL.U)
    with jax.set_mesh(mesh := make_mesh(**sizes, explicit=explicit)):
        features = jax.P("tensor") if "tensor" in sizes else jax.P()
        last = jax.P(None, "tensor") if "tensor" in sizes else jax.P()
        place = lambda spec: jax.NamedSharding(mesh, spec)
        sae = dataclasses.replace(
            jax.device_put(SAE, place(jax.P())),
            W_dec=jax.device_put(SAE.W_dec, place(features)),
            W_enc=jax.device_put(SAE.W_enc, place(last if SAE.W_enc.shape == (16, 24) else features)),
        )
        model = jax.device_put(MODEL, place(jax.P()))
        there = collect_features(model, ADDRESS, sae, BATCHES, options, unembed=model.U)
    for (name, value), (_, other) in zip(one.arrays(), there.arrays()):
        np.testing.assert_allclose(other, value, atol=1e-5, err_msg=name)


def test_signed_latents_are_on_at_both_ends():
    sae = init_sae(jax.random.key(2), 16, 24, AbsTopK(4), jnp.zeros(16))
    options = dataclasses.replace(OPTIONS, loss_examples=0, token_examples=0)
    data = collect_features(MODEL, ADDRESS, sae, BATCHES, options)
    rows = np.concatenate(
        [np.asarray(sae.encode(harvest(MODEL, ADDRESS, t)))[np.asarray(k).ravel()] for t, k in BATCHES]
    )
    assert (rows < 0).any()
    np.testing.assert_array_equal(data.firings, (rows != 0).sum(0))
    for label, peaks in (("top", -np.sort(-rows, axis=0)[0]), ("lowest", np.sort(rows, axis=0)[0])):
        sign = 1 if label == "top" else -1
        np.testing.assert_allclose(
            group(data, label).windows.peak[:, 0], np.where(sign * peaks > 0, peaks, 0), rtol=1e-5
        )
    np.testing.assert_allclose(data.min_activation, np.minimum(rows.min(0), 0), rtol=1e-5)
    assert data.activation_histogram.edges[0] < 0 < data.activation_histogram.edges[-1]


def test_units_of_a_score_function_have_token_effects_too():
    heads = lambda model, tokens: harvest(model, ADDRESS, tokens)[:, :3]
    options = dataclasses.replace(OPTIONS, loss_examples=0, units=(2, 0))
    data = collect_units(heads, MODEL, BATCHES, options, address=ADDRESS, names=Names("head"))
    one = group(data, "top")
    unit, k, i, position = measured(one, 2)[0]
    tokens, _ = whole(i)
    embedded = np.asarray(MODEL.E, np.float64)[tokens]
    without = embedded.copy()
    without[position] = 0
    change = residual(without)[position, 2] - residual(embedded)[position, 2]
    np.testing.assert_allclose(one.token_effects[unit, k, 5], change, atol=1e-5)
    assert (data.neighbours, data.promoted, data.loss_effect) == (None, None, None)
    assert group(data, "lowest").windows.peak.max() < 0  # residual streams have both signs


def test_effects_that_cannot_be_measured_are_refused():
    with pytest.raises(UserError, match="cannot be ablated"):
        collect_units(lambda m, t: harvest(m, ADDRESS, t), MODEL, BATCHES, OPTIONS)
    with pytest.raises(UserError, match="cannot be read a second time"):
        collect_features(MODEL, ADDRESS, SAE, iter(BATCHES), OPTIONS)

    class Shorter(list):
        def __iter__(self):
            self.pop()
            return super().__iter__()

    with pytest.raises(UserError, match="cannot be read a second time"):
        collect_features(MODEL, ADDRESS, SAE, Shorter(BATCHES * 2), OPTIONS)
    with pytest.raises(UserError, match="a feature is ablated where one value is read"):
        collect_features(MODEL, (ADDRESS, "embed"), SAE, BATCHES, OPTIONS)

    class Changing(list):
        rounds = 0

        def __iter__(self):
            self.rounds += 1
            return iter(BATCHES if self.rounds == 1 else BATCHES[::-1])

    with pytest.raises(UserError, match="another text when they are read again"):
        collect_features(MODEL, ADDRESS, SAE, Changing(BATCHES), OPTIONS)
    with pytest.raises(UserError, match="units="):
        collect_features(MODEL, ADDRESS, SAE, BATCHES, dataclasses.replace(OPTIONS, units=(24,)))
    for wrong in ({"top": 0}, {"threshold": -1.0}, {"uniform": 9}, {"token_examples": 5}, {"loss_examples": 9}):
        with pytest.raises(UserError):
            dataclasses.replace(OPTIONS, **wrong)
