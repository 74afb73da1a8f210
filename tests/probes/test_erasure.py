"""Concept erasure: the guarantee on the fitted data, the least change, hard data, and erasers as edits of a model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from small_models import CONFIGS, peaky

from jax_interp import UserError
from jax_interp.probes import LabelledTokens, Last, Vectors, gather, gather_tokens
from jax_interp.probes.erasure import (
    ERASURES,
    AffineEraser,
    Inlp,
    Leace,
    MeanProjection,
    Moments,
    Sal,
    concept_of,
    fit_erasers,
    judge_erasers,
    oracle_eraser,
    scrub,
)
from jax_interp.probes.erasure.moments import moments_of
from jax_interp.surgery import Each, at, call, edit, load_edits, read, save_edits

GUARANTEED = [Leace(), Leace(0.3), Leace("auto"), MeanProjection(), Sal(2)]
CLASSES = 3


def rows(n=300, d=10, classes=CLASSES, seed=0):
    """Activations with correlated columns, whose means and covariances depend on the class."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    mix = rng.standard_normal((classes, d, d)) / d**0.5 + np.diag(np.geomspace(0.1, 3, d))
    x = np.einsum("nd,nde->ne", rng.standard_normal((n, d)), mix[y]) + 5 + rng.standard_normal((classes, d))[y]
    return x.astype(np.float32), y


def entropy(y):
    share = np.bincount(y) / len(y)
    return float(-(share * np.log(share)).sum())


def fitted(x, y, penalty=1e-6):
    """Multinomial logistic regression in float64, by SciPy: (loss on the data that it is fitted on, accuracy)."""
    x = np.c_[(x - x.mean(0)) / np.maximum(x.std(0), 1e-4), np.ones(len(x))].astype(np.float64)
    onehot = np.eye(y.max() + 1)[y]

    def objective(flat):
        w = flat.reshape(x.shape[1], -1)
        logits = x @ w
        p = softmax(logits, axis=1)
        loss = -np.mean(log_softmax(logits, axis=1)[np.arange(len(y)), y])
        return loss + penalty / 2 * np.sum(w**2), (x.T @ (p - onehot) / len(y) + penalty * w).ravel()

    found = minimize(objective, np.zeros(x.shape[1] * onehot.shape[1]), jac=True, method="L-BFGS-B").x
    logits = x @ found.reshape(x.shape[1], -1)
    return -np.mean(log_softmax(logits, axis=1)[np.arange(len(y)), y]), np.mean(logits.argmax(1) == y)


def test_leace_is_the_formula_of_the_paper():
    x, y = rows()
    z = concept_of(y)
    wide, cross = x.astype(np.float64), (x - x.mean(0)).astype(np.float64).T @ (z - z.mean(0)) / len(x)
    values, vectors = np.linalg.eigh(np.cov(wide.T, bias=True))
    w, w_inverse = (vectors * values**-0.5) @ vectors.T, (vectors * values**0.5) @ vectors.T
    onto = (w @ cross) @ np.linalg.pinv(w @ cross)
    expected = wide - (wide - wide.mean(0)) @ (w_inverse @ onto @ w).T
    np.testing.assert_allclose(Leace().fit(x, z)(jnp.asarray(x)), expected, atol=2e-4)


def test_erasures_are_registered():
    assert {type(erasure).__name__ for erasure in GUARANTEED} | {"Inlp"} == set(ERASURES.names())


@pytest.mark.parametrize("erasure", GUARANTEED, ids=str)
@pytest.mark.parametrize("case", ["plain", "n < d", "constant columns", "one huge column", "float16"])
def test_no_linear_probe_beats_the_constant_on_the_fitted_data(erasure, case):
    x, y = rows(*((20, 40) if case == "n < d" else ()))
    if case == "constant columns":
        x[:, 3], x[:, 4] = 0, 1000.1
    if case == "one huge column":
        x[:, 2] *= 3e3
    x = x.astype(np.float16) if case == "float16" else x
    eraser = erasure.fit(x, concept_of(y))
    assert eraser.left.dtype == jnp.float32
    erased = np.asarray(eraser(jnp.asarray(x)))
    wide = x.astype(np.float64)
    scale = np.maximum(wide.std(0), 1e-6 * (1 + np.abs(wide.mean(0))))
    means = lambda a: np.stack([a[y == c].mean(0, dtype=np.float64) for c in range(CLASSES)])
    np.testing.assert_allclose(erased.mean(0, dtype=np.float64), wide.mean(0), atol=1e-3 * scale.max())
    gradient = (means(erased) - means(erased).mean(0)) / scale  # of the loss at the constant, up to constants
    if case != "constant columns":
        assert np.abs(gradient).max() < 2e-3 if case != "one huge column" else 5e-2
        assert np.abs((means(wide) - means(wide).mean(0)) / scale).max() > 0.2
        np.testing.assert_allclose(eraser(jnp.asarray(erased)), erased, atol=1e-3 * scale.max())  # idempotent
    if case == "plain":
        assert fitted(x, y)[0] < 0.9 * entropy(y)
        assert fitted(erased, y)[0] == pytest.approx(entropy(y), abs=1e-4)


def test_leace_changes_least_in_every_norm():
    x, y = rows()
    z = concept_of(y)
    changed = {repr(e): np.asarray(e.fit(x, z)(jnp.asarray(x))) - x for e in GUARANTEED}
    rng = np.random.default_rng(1)
    for m in [np.eye(10), *(a @ a.T for a in rng.standard_normal((5, 10, 10)))]:
        sizes = {name: np.einsum("nd,de,ne->", c, m, c) for name, c in changed.items()}
        assert all(sizes["Leace(shrinkage=0.0)"] <= size * (1 + 1e-5) for size in sizes.values())
    oracle = oracle_eraser(x, z)(jnp.asarray(x), jnp.asarray(z)) - x
    assert (np.asarray(oracle) ** 2).sum() < (changed["Leace(shrinkage=0.0)"] ** 2).sum()
    assert fitted(np.asarray(oracle) + x, y)[0] == pytest.approx(entropy(y), abs=1e-4)


@pytest.mark.slow
def test_inlp_removes_directions_round_after_round():
    x, y = rows()
    losses = [fitted(x, y)[0]]
    for rounds in (1, 2):
        eraser = Inlp(rounds).fit(x, concept_of(y))
        assert np.linalg.matrix_rank(eraser.matrix(), tol=1e-3) == 10 - CLASSES * rounds
        losses.append(fitted(np.asarray(eraser(jnp.asarray(x))), y)[0])
    assert losses[0] < losses[1] < losses[2] < entropy(y)
    everything = Inlp(4).fit(x, concept_of(y))(jnp.asarray(x))
    np.testing.assert_allclose(everything, np.broadcast_to(x.mean(0), x.shape), atol=1e-4)


def test_moments_of_a_stream_are_those_of_the_whole():
    x, y = rows()
    x = x + 1000  # digits of the mean must not be lost
    z, weight = concept_of(y), np.ones(len(x), np.float32)
    weight[::7] = 0
    hidden = np.where(weight[:, None] > 0, x, np.nan).astype(np.float32)
    moments = Moments.empty(10, 2)
    for start in range(0, 300, 64):
        part = slice(start, start + 64)
        moments = jax.jit(Moments.update)(moments, hidden[part], z[part], weight[part])
    kept = x[weight > 0].astype(np.float64)
    np.testing.assert_allclose(moments.xx / moments.n, np.cov(kept.T, bias=True), atol=2e-3)
    of_two = moments_of(jnp.asarray(x[:100]), jnp.asarray(z[:100])).merge(
        moments_of(jnp.asarray(x[100:]), jnp.asarray(z[100:]))
    )
    np.testing.assert_allclose(of_two.xz, moments_of(jnp.asarray(x), jnp.asarray(z)).xz, atol=0.05)


def test_a_concept_of_real_numbers():
    x, _ = rows()
    target = x @ np.linspace(-1, 1, 10).astype(np.float32) + np.random.default_rng(2).standard_normal(300)
    erased = np.asarray(Leace().fit(x, concept_of(target))(jnp.asarray(x)))
    correlation = np.corrcoef(np.c_[erased, target].T)[-1, :-1]
    assert np.abs(correlation).max() < 1e-4
    with pytest.raises(UserError, match="real numbers"):
        Inlp().fit(x, concept_of(target))


def test_what_cannot_be_erased_is_refused():
    x, y = rows()
    with pytest.raises(UserError, match="no concept to erase"):
        concept_of(np.zeros(5, int))
    with pytest.raises(UserError, match="not finite"):
        concept_of(np.array([0.0, np.nan]))
    with pytest.raises(UserError, match="there are 2 classes"):
        concept_of(y, 2)
    x[0, 0] = np.nan
    for erasure in (Leace(), MeanProjection(), Inlp()):
        with pytest.raises(UserError, match="finite"):
            erasure.fit(x, concept_of(y))
    with pytest.raises(UserError, match="two rows"):
        Leace().fit(x[1:2], concept_of(y)[:1])
    with pytest.raises(UserError, match="between 0 and 1"):
        Leace(2.0)


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    model = peaky(CONFIGS["gpt2-like"])
    tokens = rng.integers(2, 61, (40, 9)).astype(np.int32)
    mask = np.arange(9)[None] < rng.integers(6, 10, 40)[:, None]
    readable = mask & (np.arange(9) > 0)[None]
    labels = (tokens[:, 1] > 30).astype(np.int32)
    return model, LabelledTokens("made up", tokens, mask, readable, labels, ("low", "high"))


def spread(x, read, labels):
    """The largest difference of class means over tokens, in standard deviations."""
    x, y = x[read], np.broadcast_to(labels[:, None], read.shape)[read]
    return np.abs(x[y == 1].mean(0) - x[y == 0].mean(0)).max() / x.std()


def test_scrubbing_erases_in_the_edited_model(setting):
    model, data = setting
    where = "blocks.*.resid_post"
    alone = fit_erasers(Leace(), gather_tokens(model, data, where))
    scrubbed = scrub(model, data, where, batch=16)
    assert list(scrubbed.of_site) == [f"blocks.{layer}.resid_post" for layer in range(3)]
    after = lambda erasers: gather_tokens(edit(model, erasers.edits()), data, where)
    for number, (site, x) in enumerate(after(scrubbed).values.items()):
        assert spread(x, data.readable, data.labels) < 1e-4
        assert (spread(after(alone).values[site], data.readable, data.labels) < 1e-4) == (number == 0)
    with pytest.raises(UserError, match="of one width"):
        scrub(model, data, ["blocks.0.resid_post", "blocks.1.mlp.post"])


def test_erasers_are_edits(setting, tmp_path):
    model, data = setting
    vectors = gather(model, data, "blocks.*.resid_post", Last())
    erasers = fit_erasers(Leace(), vectors)
    edits = erasers.edits(pos=slice(1, None))
    path = save_edits(tmp_path / "erasers.safetensors", *edits)
    again = load_edits(path, types=[AffineEraser])
    logits = call(edit(model, edits), data.tokens)
    np.testing.assert_array_equal(call(edit(model, again), data.tokens), logits)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *erasers.of_site.values())
    each = edit(model, at("blocks.*.resid_post", Each(stacked), pos=slice(1, None)))
    np.testing.assert_allclose(jax.jit(lambda m, t: m(t))(each, data.tokens), logits, atol=1e-4)

    eraser = erasers.of_site["blocks.1.resid_post"]
    gradient = jax.grad(lambda x: jnp.sum(eraser(x) ** 2))(jnp.ones(32))
    np.testing.assert_allclose(gradient, 2 * eraser.matrix().T @ eraser(jnp.ones(32)), rtol=1e-3, atol=1e-4)
    many = jax.vmap(lambda eraser, x: eraser(x), in_axes=(0, None))(stacked, jnp.ones(32))
    np.testing.assert_allclose(many[1], eraser(jnp.ones(32)), atol=1e-5)

    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, model)
    found = call(read(edit(half, edits), "blocks.1.resid_post"), data.tokens)[1]["blocks.1.resid_post"]
    assert found.dtype == jnp.bfloat16
    assert bool(jnp.all(jnp.isfinite(found)))


def test_tokens_can_have_labels_of_their_own(setting):
    model, data = setting
    of_token = np.where(data.readable, data.tokens % 3, -1).astype(np.int32)
    labelled = dataclasses.replace(data, token_labels=of_token, classes=("a", "b", "c"))
    sequences = gather_tokens(model, labelled, "blocks.1.resid_post")
    x = sequences.values["blocks.1.resid_post"][data.readable]
    erased = np.asarray(fit_erasers(Leace(), sequences).of_site["blocks.1.resid_post"](jnp.asarray(x)))
    y = of_token[data.readable]
    means = np.stack([erased[y == c].mean(0) for c in range(3)])
    assert np.abs(means - means.mean(0)).max() < 1e-3


@pytest.mark.slow
def test_the_report_tells_fitted_from_other_examples():
    """Nothing is left on the fitted examples. On others something is, if there were 60 examples for 40 columns."""
    found = {}
    for n in (60, 600):
        x, y = rows(n + 800, 40, classes=2, seed=3)
        zeros = np.zeros((len(y), 1), np.int32)
        ones = np.ones((len(y), 1), bool)
        data = LabelledTokens("made up", zeros, ones, ones, y.astype(np.int32), ("no", "yes"))
        vectors, train = Vectors(data, (Last(),), {"x": x[None]}), np.arange(len(y)) < n
        (found[n],) = judge_erasers(fit_erasers(Leace(), vectors, train=train), vectors, train)
        assert found[n].loss[0] < 0.5 * found[n].entropy
        assert found[n].loss[1] == pytest.approx(found[n].entropy, abs=1e-4)
        assert found[n].before.low > 0.7
        assert 0 < found[n].changed < 0.6
    assert found[60].after.low > 0.55
    assert 0.45 < found[600].after.value < found[60].after.value - 0.1
    assert "held-out AUROC" in str(found[60])
    assert found[60].to_json()["label"] == "yes"
