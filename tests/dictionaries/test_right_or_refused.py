"""Figures that could mislead are right or have a reason, and what cannot be right is refused before it is trained."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards import OnToken, features_on_token, top_activations
from jax_interp.dashboards.collector import ScoredBatch
from jax_interp.dashboards.statistics import InputTokens
from jax_interp.data.activation_writing import write_activation_store
from jax_interp.data.harvest import harvest
from jax_interp.dictionaries import (
    BatchTopK,
    CrossLayerConfig,
    Dictionary,
    DictionaryConfig,
    EndToEndConfig,
    EndToEndSAEConfig,
    ReLU,
    SAEConfig,
    Sweep,
    evaluate,
    init_sae,
    load_dictionary,
    save_dictionary,
    train_dictionary,
    train_from_store,
    train_sweep,
    variants,
)
from jax_interp.dictionaries.activations import Jump
from jax_interp.dictionaries.evaluation.downstream import CrossEntropy, add_by_position
from jax_interp.dictionaries.evaluation.evaluate import evaluate_rows
from jax_interp.dictionaries.losses import AuxK, Reconstruction
from jax_interp.dictionaries.training.sweep import members
from jax_interp.surgery import Site, Splice, Zero, at, call, edit, read
from jax_interp.training import QUIET

ADDRESS = "blocks.0.resid_post"
SAE = init_sae(jax.random.key(0), 16, 32, ReLU())


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Sparse codes of 24 directions at "x", moved by `shift`. Position 0 of a sequence is a sink: it is `sink` times as
    long."""

    directions: jax.Array
    shift: jax.Array
    sink: float = dataclasses.field(default=1.0, metadata={"static": True})

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps)

        def one(i):
            a, b = jax.random.split(jax.random.key(i))
            on = jax.random.permutation(a, len(self.directions)) < 3
            codes = jnp.where(on, jax.random.uniform(b, on.shape, minval=0.5, maxval=1.5), 0.0)
            return codes @ self.directions + self.shift

        x = jax.vmap(one)(tokens.reshape(-1)).reshape(*tokens.shape, -1)
        return site.close(site("x", x.at[:, 0].multiply(self.sink)))


def world(shift: float = 0.0, sink: float = 1.0) -> World:
    E = np.random.default_rng(0).normal(size=(24, 12))
    away = np.random.default_rng(1).normal(size=12)
    E, away = E / np.linalg.norm(E, axis=1, keepdims=True), away / np.linalg.norm(away)
    return World(jnp.asarray(E, jnp.float32), jnp.asarray(shift * away, jnp.float32), sink)


def codes_at(i: int):
    tokens = np.arange(i * 256, (i + 1) * 256, dtype=np.int32).reshape(16, 16)
    return tokens, np.ones(tokens.shape, bool)


@pytest.mark.parametrize("variant", ["topk", "april", "jumprelu", "tanh_jumprelu"])
def test_a_long_mean_changes_nothing(variant):
    """A dictionary with free biases can undo a shift. So the figures are those without it (arXiv:2605.31518)."""
    options = {"k": 3} if variant == "topk" else {}
    fields = {"n_features": 24, "steps": 60, "buffer": 1024, "dead_after": 5_000}
    config, found = getattr(variants, variant)("x", **options).with_fields(**fields), []
    for shift in (0.0, 20.0):
        model = world(shift)
        sae = train_dictionary(config, model, codes_at, log=QUIET)
        rows = harvest(model, "x", jnp.asarray(codes_at(10_000)[0]))
        found.append(evaluate_rows(sae, [rows]))
    without, with_mean = found
    assert with_mean.reconstruction.fvu == pytest.approx(without.reconstruction.fvu, rel=0.15)
    assert abs(with_mean.density.dead - without.density.dead) <= 2


def test_a_sink_can_be_left_out_by_position_or_by_length():
    model, tokens = world(sink=40.0), jnp.asarray(codes_at(10_000)[0])
    rest = harvest(model, "x", tokens).reshape(16, 16, -1)[:, 1:].reshape(-1, 12)
    base = DictionaryConfig("x", n_features=24, activation=variants.topk("x", k=3).activation, steps=60, buffer=1024)
    fvu = {}
    for name, config in {
        "all": base,
        "by position": dataclasses.replace(base, skip_first=1),
        "by length": dataclasses.replace(base, max_norm=5.0),
    }.items():
        sae = train_dictionary(config, model, codes_at, log=QUIET)
        fvu[name] = evaluate_rows(sae, [rest]).reconstruction.fvu
    assert fvu["all"] > 2 * fvu["by position"]
    assert fvu["by length"] == pytest.approx(fvu["by position"], rel=0.2)
    with pytest.raises(UserError, match="skip_first=16 leaves nothing"):
        train_dictionary(dataclasses.replace(base, skip_first=16), model, codes_at, log=QUIET)


def test_evaluation_leaves_out_first_positions_and_names_both_figures():
    model = toy()
    batches = [(np.asarray(t), np.ones(t.shape, bool)) for t, _ in map(batch_at, range(2))]
    later = [(t, k & (np.arange(k.shape[1]) >= 2)) for t, k in batches]
    both, masked, all_kept = (
        evaluate(model, ADDRESS, SAE, batches, skip_first=2),
        evaluate(model, ADDRESS, SAE, later),
        evaluate(model, ADDRESS, SAE, batches),
    )
    assert both.reconstruction == masked.reconstruction
    assert both.cross_entropy.spliced == masked.cross_entropy.spliced
    assert both.reconstruction_all == all_kept.reconstruction
    assert both.to_json()["skip_first"] == 2
    first = harvest(model, ADDRESS, jnp.asarray(np.concatenate([t for t, _ in batches]))).reshape(16, 16, -1)
    expected = evaluate_rows(SAE, [first[:, 1:].reshape(-1, 16)]).reconstruction
    assert all_kept.reconstruction_after_first.fvu == pytest.approx(expected.fvu, rel=1e-5)


def test_a_score_without_a_scale_has_a_reason():
    names = ("clean", "spliced", "zero", "mean", "kl_spliced", "kl_zero", "kl_mean")
    losses = dict.fromkeys(names, np.full((1, 4), 2.0)) | {"zero": np.full((1, 4), 1.9), "mean": np.full((1, 4), 2.5)}
    losses |= {"kl_zero": np.full((1, 4), np.inf), "kl_mean": np.full((1, 4), 1e-6)}
    found = CrossEntropy.from_sums(add_by_position(None, losses, np.ones((1, 4), bool)))
    assert np.isnan(found.recovered_zero)
    assert found.recovered_mean == 1
    assert found.undefined["recovered_zero"] == "zero ablation changes the loss by -0.1 nats: it does not hurt"
    assert set(found.undefined) == {"recovered_zero", "kl_zero_ablated", "kl_score_zero", "kl_score_mean"}


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Suppressed:
    """A model that never predicts the first two tokens of its vocabulary."""

    model: object

    def __call__(self, tokens, *, taps=()):
        out = self.model(tokens, taps=taps)
        return out.at[..., :2].set(-jnp.inf) if isinstance(out, jax.Array) else out


def test_tokens_that_are_never_predicted_add_nothing():
    model, (tokens, _) = toy(), batch_at(0)
    tokens, keep = np.asarray(tokens) % 38 + 2, np.ones(tokens.shape, bool)

    def log_p(one):
        logits = np.asarray(call(one, tokens), np.float64)[:, :-1, 2:]
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    p, q = log_p(model), log_p(edit(model, at(ADDRESS, Splice(SAE))))
    found = evaluate(Suppressed(model), ADDRESS, SAE, [(tokens, keep)]).cross_entropy
    assert found.kl_spliced == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-4)


def test_equal_rows_have_no_variance_to_explain():
    figures = evaluate_rows(SAE, [jnp.full((20, 16), 3.1), jnp.full((5, 16), 3.1)])
    assert np.isnan(figures.reconstruction.fvu)
    assert np.isnan(figures.published.ev_per_token)
    assert np.isfinite(figures.reconstruction.sse)
    frozen = dataclasses.replace(world(), directions=jnp.zeros((24, 12)), shift=jnp.ones(12))
    config = variants.topk("x", k=3, n_features=24, buffer=512)
    with pytest.raises(UserError, match="equal at every position"):
        train_dictionary(config, frozen, codes_at, log=QUIET)


def test_a_model_that_is_edited_later_is_read_and_measured():
    model, batches = toy(), [batch_at(0)]
    later = edit(model, at("blocks.2.resid_post", Zero(), feature=3))
    clean = evaluate(later, ADDRESS, SAE, batches).cross_entropy.clean
    logits = call(later, batches[0][0])[:, :-1]
    counted = np.asarray(batches[0][1])[:, :-1] & np.asarray(batches[0][1])[:, 1:]
    losses = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(batches[0][0])[:, 1:, None], -1)
    assert clean == pytest.approx(losses[..., 0][counted].mean(), rel=1e-5)
    assert clean != pytest.approx(evaluate(model, ADDRESS, SAE, batches).cross_entropy.clean, rel=1e-3)
    found = top_activations(later, ADDRESS, SAE, batches, features=[0], n=2)
    np.testing.assert_array_equal(found.peak, top_activations(model, ADDRESS, SAE, batches, [0], n=2).peak)
    wrong = edit(model, at("blocks.2.resid_mid", Zero()))
    with pytest.raises(UserError, match="names no value"):
        top_activations(wrong, ADDRESS, SAE, batches, features=[0])


def test_every_method_accepts_the_spelling_of_transformer_lens(tmp_path):
    theirs, ours, later = "blocks.0.hook_resid_post", ADDRESS, "blocks.1.hook_resid_post"
    assert DictionaryConfig((theirs, later)).reads == (ours, "blocks.1.resid_post")
    assert DictionaryConfig(ours, writes=later).targets == ("blocks.1.resid_post",)
    assert CrossLayerConfig((theirs, later)).reads == (ours, "blocks.1.resid_post")
    assert SAEConfig(theirs) == SAEConfig(ours)
    sae = EndToEndSAEConfig(theirs)
    assert EndToEndConfig((sae,), downstream=(later,)).downstream == ("blocks.1.resid_post",)
    assert Sweep(addresses=(theirs,)).addresses == (ours,)
    save_dictionary(tmp_path / "one", SAE, address=theirs, model="toy")
    assert load_dictionary(tmp_path / "one").address == ours
    model, fields = toy(), {"n_features": 32, "steps": 2, "buffer": 256}
    config = variants.topk(theirs, k=4, **fields)
    found = train_dictionary(config, model, batch_at, log=QUIET)
    jax.tree.map(
        np.testing.assert_array_equal, found, train_dictionary(variants.topk(ours, k=4, **fields), model, batch_at)
    )
    assert json.dumps(evaluate(model, theirs, found, [batch_at(0)]).to_json(), allow_nan=False)
    store = write_activation_store(tmp_path / "store", model, theirs, batch_at, rows=256, quiet=True)
    stored = variants.topk(ours, k=4, n_features=32, steps=2)
    assert train_from_store(stored, store, batch=64, log=QUIET).n_features == 32
    ((member, one),) = train_sweep(config, Sweep(addresses=(theirs,)), model, batch_at, log=QUIET)
    assert evaluate(model, member.address, one, [batch_at(0)]).address == ours


def test_every_member_of_a_sweep_is_checked_before_training():
    config = variants.topk(ADDRESS, k=4, n_features=32)
    with pytest.raises(UserError, match=r"member 1 of the sweep cannot be trained: learning_rate=0\.0"):
        members(config, Sweep(learning_rates=(1e-3, 0.0)))


def test_what_a_step_refuses_leaves_no_directory(tmp_path):
    config = variants.topk(ADDRESS, k=4, n_features=32, buffer=256, loss=(Reconstruction(), AuxK(k=99)))
    with pytest.raises(UserError, match=r"AuxK\(k=99\) of n_features=32"):
        train_dictionary(config, toy(), batch_at, run=tmp_path / "run", log=QUIET)
    assert not (tmp_path / "run").exists()


def test_fields_without_effect_are_refused(tmp_path):
    store = write_activation_store(tmp_path, toy(), ADDRESS, batch_at, rows=256, quiet=True)
    for field in ({"buffer": 512}, {"skip_first": 1}, {"max_norm": 10.0}):
        with pytest.raises(UserError, match="has no effect on a store"):
            train_from_store(variants.topk(ADDRESS, k=4, n_features=32, steps=2, **field), store)
    with pytest.raises(UserError, match="centred=True would subtract"):
        DictionaryConfig(ADDRESS, writes="blocks.1.resid_post", centred=True)
    assert DictionaryConfig(ADDRESS, writes="blocks.1.resid_post").centred is False
    assert variants.topk(ADDRESS, writes="blocks.1.resid_post").centred is False
    assert DictionaryConfig(ADDRESS).centred is True
    with pytest.raises(UserError, match="latents are counted up to"):
        DictionaryConfig(ADDRESS, dead_after=2**31)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    bad = dataclasses.replace(SAE, W_dec=SAE.W_dec.at[3, 4].set(jnp.nan))
    save_dictionary(tmp_path, bad, address=ADDRESS, model="toy")
    with pytest.raises(UserError, match="W_dec has numbers that are NaN or infinite"):
        load_dictionary(tmp_path)
    with pytest.raises(UserError, match="NaN or infinite: W_dec"):
        evaluate(toy(), ADDRESS, bad, [batch_at(0)])
    model = toy()
    broken = dataclasses.replace(model, U=model.U.at[0, 0].set(jnp.nan))
    with pytest.raises(UserError, match="loss of NaN on the first batch"):
        evaluate(broken, ADDRESS, SAE, [batch_at(0)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_enc": jnp.zeros((32, 16))}, r"W_enc\.T fits the 32 entries"),
        ({"W_dec": jnp.zeros((16, 32))}, r"W_dec\.T fits the 32 entries"),
        ({"b_enc": jnp.zeros(16)}, r"b_enc should have shape \(32,\)"),
        ({"b_dec": jnp.zeros(32)}, r"b_dec should have shape \(16,\)"),
        ({"activation": Jump(jnp.zeros(16))}, r"log_threshold should have shape \(32,\)"),
        ({"W_skip": jnp.zeros((16, 3)), "centred": False}, r"W_skip should have shape \(16, 16\)"),
        ({"write_sites": 3}, "write_sites=3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SAE, **change)


def test_thresholds_of_other_libraries():
    """dictionary_learning computes relu(z * (z > threshold)) with thresholds of any sign."""
    x, W = np.random.default_rng(0).normal(size=(50, 4)), np.random.default_rng(1).normal(size=(4, 6))
    threshold = np.array([0.3, 0.1, 0.0, -0.1, -5.0, 2.0])
    one = Dictionary(jnp.asarray(W), jnp.zeros(6), jnp.asarray(W.T), jnp.zeros(4), Jump.of(threshold), centred=False)
    theirs = np.maximum((x @ W) * (x @ W > threshold), 0)
    np.testing.assert_allclose(one.encode(jnp.asarray(x)), theirs, atol=1e-5)
    with pytest.raises(UserError, match="NaN"):
        Jump.of(jnp.asarray([0.1, jnp.nan]))
    with pytest.raises(UserError, match=r"has no threshold, .* give threshold="):
        dataclasses.replace(SAE, activation=BatchTopK(4)).encode(jnp.zeros((2, 16)))


def test_features_on_any_of_several_tokens():
    model, batches = toy(), [batch_at(0), batch_at(1)]
    found = features_on_token(model, ADDRESS, SAE, batches, token=[5, 9], n=32)
    tokens, keep = (np.concatenate(part) for part in zip(*batches))
    z = np.concatenate([SAE.encode(read(model, ADDRESS, output=False)(t)[ADDRESS]) for t, _ in batches])
    here = keep & np.isin(tokens, [5, 9])
    assert found.token == (5, 9)
    assert found.occurrences == here.sum()
    np.testing.assert_allclose(found.mean_on, z[here].mean(0)[found.features], rtol=1e-5)
    np.testing.assert_allclose(found.mean_elsewhere, z[keep & ~here].mean(0)[found.features], rtol=1e-5)
    with pytest.raises(UserError, match="give the id of a token"):
        features_on_token(model, ADDRESS, SAE, batches, token="self")


def test_counts_above_31_bits_are_exact():
    """Merging doubles the counts 32 times. A count of n positions becomes n · 2³²."""
    tokens, keep = jnp.asarray([[3, 3, 5]]), jnp.ones((1, 3), bool)
    batch = ScoredBatch(tokens, keep, jnp.ones((1, 1, 3)), None, None)
    for statistic, count in ((InputTokens(8), lambda r: r.count[3]), (OnToken(3), lambda r: r.count[0])):
        state = statistic.of(batch)
        for _ in range(32):
            state = statistic.merge(state, state)
        assert count(statistic.result(jax.device_get(state))) == 2 * 2**32
