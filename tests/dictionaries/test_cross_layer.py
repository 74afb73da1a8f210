"""Cross-layer dictionaries against float64 written from the equations, and against the forms that they contain."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.data.harvest import harvest
from jax_interp.dictionaries.activations import BatchTopK, Gated, Jump, JumpReLU, ReLU, TopK
from jax_interp.dictionaries.evaluation.evaluate import evaluate_rows
from jax_interp.dictionaries.forms import init_transcoder
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source, decoder_norms, from_transcoders
from jax_interp.dictionaries.forms.side_by_side import SideBySide
from jax_interp.dictionaries.losses import L1, AuxK, Matryoshka, PreActivation, Reconstruction, Tanh
from jax_interp.dictionaries.training.config import Adam, CrossLayerConfig, DictionaryConfig
from jax_interp.dictionaries.training.cross_layer import (
    fold_scales,
    init_cross_layer_learner,
    learn_cross_layer,
    train_cross_layer,
)
from jax_interp.dictionaries.training.train import init_learner, learn
from jax_interp.training import Log

S, D, E, M, ROWS = 3, 5, 4, 11, 40
PRE = tuple(f"blocks.{i}.resid_pre" for i in range(3))
POST = tuple(f"blocks.{i}.resid_post" for i in range(3))
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((S, ROWS, D)), RNG.standard_normal((S, ROWS, E))


def weights(window=3, seed=1, dtype=np.float64):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(dtype)
    parts = [(normal(D, M), normal(M), normal(M, min(window, S - i), E), normal(M)) for i in range(S)]
    return parts, normal(S, E)


def cross_layer(parts, b_dec, activation, skip=None):
    sources = [Source(*map(jnp.asarray, (*part[:3],)), activation(part[3]), skip) for part in parts]
    return CrossLayer(tuple(sources), jnp.asarray(b_dec))


def reference(parts, b_dec, activate):
    """(latents, targets), sums written out."""
    z = [activate(X[i] @ W_enc + b_enc, i) for i, (W_enc, b_enc, *_) in enumerate(parts)]
    y = []
    for t in range(len(parts)):
        y.append(b_dec[t] + 0 * Y[t])
        for i in range(t + 1):
            if t - i < parts[i][2].shape[1]:
                y[t] = y[t] + z[i] @ parts[i][2][:, t - i]
    return z, y


def test_latents_and_targets_are_the_equations():
    @jax.jit
    def all_of(ours, x):
        side, flat = SideBySide(ours), jnp.concatenate(list(x.reshape(S, ROWS, D)), axis=1)
        return ours.encode(x), ours(x), ours.decode(ours.encode(x)), side.decode(side.encode(flat)), decoder_norms(ours)

    with jax.enable_x64(True):
        for window in (3, 2):
            parts, b_dec = weights(window)
            ours = cross_layer(parts, b_dec, lambda a: Jump(jnp.asarray(a)))
            z, y = reference(parts, b_dec, lambda pre, i, parts=parts: pre * (pre > np.exp(parts[i][3])))
            latents, whole, decoded, side, norms = map(np.asarray, all_of(ours, X.reshape(S, 8, 5, D)))
            np.testing.assert_allclose(latents.reshape(S, ROWS, M), z, rtol=1e-9)
            np.testing.assert_allclose(whole.reshape(S, ROWS, E), y, rtol=1e-9)
            np.testing.assert_allclose(decoded, whole, rtol=1e-9)
            np.testing.assert_allclose(side, np.concatenate(y, axis=1), rtol=1e-9)
            for i in range(S):
                for t in range(S):
                    inside = i <= t < i + window
                    want = np.linalg.norm(parts[i][2][:, t - i], axis=1) if inside else np.zeros(M)
                    np.testing.assert_allclose(norms[i, :, t], want, rtol=1e-9)


def rescaled(pre, norm, k, batch):
    """TopK by pre · norm: over each row, or over all rows together."""
    scores = np.asarray(pre * norm)
    least = np.sort(scores.ravel())[-k * len(scores)] if batch else np.sort(scores, 1)[:, -k][:, None]
    return scores >= least


CASES = {
    "JumpReLU, tanh": (JumpReLU(0.5, 0.3), (Reconstruction(), Tanh(0.3, warmup=0.0), PreActivation(0.1))),
    "ReLU, L1 of norms": (ReLU(), (Reconstruction(kind="sse"), L1(0.3, weight="l1_of_norms", warmup=0.0))),
    "TopK": (TopK(3, weighted=True), (Reconstruction(),)),
    "BatchTopK": (BatchTopK(3, weighted=True), (Reconstruction(),)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "TopK" else ()) for name in CASES]
)
def test_a_step_follows_the_gradient_of_the_equation(name):
    """With SGD in Adam's place: b1 = b2 = 0 and a huge epsilon make Adam's step rate · g / ε."""
    activation, loss = CASES[name]
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        eps = 1e12
        adam = Adam(learning_rate=eps, b1=0.0, b2=0.0, eps=eps, warmup=0, decay=0.0, offset_rate=1.0)
        config = CrossLayerConfig(
            PRE[:2], writes=POST[:2], n_features=M, activation=activation, loss=loss, optimizer=adam
        )
        parts, b_dec = (one[-2:] for one in weights())  # the last two sources, two targets and one
        rows = jnp.concatenate([*map(jnp.asarray, X[:2]), *map(jnp.asarray, Y[:2])], axis=1)
        variance = jnp.asarray([1.0, 1, 4, 5])
        learner = init_cross_layer_learner(config, jax.random.key(0), (D, D, E, E), jnp.zeros(2 * (D + E)))
        made = learner.dictionary.sources[0].activation
        start = cross_layer(parts, b_dec, lambda a: Jump(jnp.asarray(a), 0.3) if isinstance(made, Jump) else made)
        after, metrics = jax.jit(lambda a: learn_cross_layer(config, a, rows, variance))(
            dataclasses.replace(learner, dictionary=start)
        )

        def equation(p):
            parts, b_dec = p
            W = [part[2].reshape(M, -1) for part in parts]
            norm = [jnp.sqrt((w * w).sum(1)) for w in W]
            by_target = [jnp.sqrt((part[2] ** 2).sum(2)).sum(1) for part in parts]

            def activate(pre, i):
                if "JumpReLU" in name:
                    return jnp.where(pre > jnp.exp(parts[i][3]), pre, 0.0)
                if name.startswith("ReLU"):
                    return jax.nn.relu(pre)
                on = rescaled(pres[i], norms[i], 3, "Batch" in name)
                return jnp.where(on, jax.nn.relu(pre), 0.0)

            z, y_hat = reference(parts, b_dec, activate)
            sse = sum(((Y[t] - y_hat[t]) ** 2).sum(1).mean() for t in range(2))
            if "JumpReLU" in name:
                tanh = sum(jnp.tanh(4 * z[i] * norm[i]).sum(1).mean() for i in range(2))
                pre = [X[i] @ parts[i][0] + parts[i][1] for i in range(2)]
                short = sum((jax.nn.relu(jnp.exp(parts[i][3]) - pre[i]) * norm[i]).sum(1).mean() for i in range(2))
                return sse / 9 + 0.3 * tanh + 0.1 * short
            if name.startswith("ReLU"):
                return sse + 0.3 * sum((z[i] * by_target[i]).sum(1).mean() for i in range(2))
            return sse / 9

        pres = [X[i] @ parts[i][0] + parts[i][1] for i in range(2)]
        norms = [np.linalg.norm(part[2].reshape(M, -1), axis=1) for part in parts]
        params = jax.tree.map(jnp.asarray, (parts, b_dec))
        value, grad = jax.jit(jax.value_and_grad(equation))(params)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-9)
        moved = lambda now, then: np.asarray(then - now)
        for i, source in enumerate(after.dictionary.sources):
            for got, then, want in zip((source.W_enc, source.b_enc, source.W_dec), parts[i], grad[0][i]):
                np.testing.assert_allclose(moved(got, then), want, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(moved(after.dictionary.b_dec, b_dec), grad[1], rtol=1e-6, atol=1e-9)
        if "JumpReLU" not in name:
            return
        # Of thresholds, by hand: the jump's estimate -(θ/ε) 1[|z - θ| < ε/2] times the code's cotangent, and θ - z
        z, y_hat = reference(parts, b_dec, lambda pre, i: np.where(pre > np.exp(parts[i][3]), pre, 0.0))
        error = np.concatenate([y_hat[t] - Y[t] for t in range(2)], axis=1)
        for i, source in enumerate(after.dictionary.sources):
            theta, W = np.exp(parts[i][3]), parts[i][2].reshape(M, -1)
            of_code = 2 / ROWS / 9 * error[:, i * E :] @ W.T
            of_code = of_code + 0.3 * 4 * norms[i] / np.cosh(4 * z[i] * norms[i]) ** 2 / ROWS
            near = abs(pres[i] - theta) < 0.3 / 2
            want = -theta / 0.3 * (of_code * near).sum(0) + 0.1 * norms[i] * (pres[i] < theta).sum(0) / ROWS
            assert near.any()
            np.testing.assert_allclose(
                moved(source.activation.log_threshold, parts[i][3]), want * theta, rtol=1e-6, atol=1e-9
            )


FIELDS = {"n_features": 32, "steps": 12, "buffer": 600, "dead_after": 100, "optimizer": Adam(warmup=2)}


def test_with_one_layer_it_is_a_transcoder():
    """The same seed gives the same weights, and three steps of the two trainers stay together."""
    adam = Adam(learning_rate=0.5, warmup=0, eps=1.0)  # with its usual ε a gradient's rounding would count in full
    loss = (Reconstruction(), L1(0.1, weight="l1_of_norms"), AuxK(k=4))
    of_each = {"activation": ReLU(), "loss": loss, "decoder": "free", "skip": True, **FIELDS}
    of_each |= {"dead_after": 30, "optimizer": adam}
    one = DictionaryConfig("a", writes="b", centred=False, **of_each)
    many = CrossLayerConfig(("a",), writes=("b",), **of_each)

    @jax.jit
    def both(rows):
        key, mean, variance = jax.random.key(3), jnp.mean(rows, axis=0), jnp.ones(2, rows.dtype)
        single, cross = init_learner(one, key, (D, E), mean), init_cross_layer_learner(many, key, (D, E), mean)

        def step(learners, _):
            (single, a), (cross, b) = (
                learn(one, learners[0], rows, variance),
                learn_cross_layer(many, learners[1], rows, variance),
            )
            return (single, cross), (a, b)

        (single, cross), (a, b) = jax.lax.scan(step, (single, cross), None, length=3)
        x = rows[:, :D]
        again = from_transcoders([single.dictionary])
        return a, b, single.dictionary(x), cross.dictionary(x[None])[0], again(x[None])[0]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        a, b, single, cross, again = both(jnp.asarray(np.concatenate([X[0], Y[0]], axis=1)))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)
    assert a["loss"][2] < a["loss"][0]
    np.testing.assert_allclose(cross, single, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(again, single, rtol=1e-5, atol=1e-7)


def test_scales_fold_into_the_weights():
    @jax.jit
    def both(one, x, read, write):
        folded, scaled = fold_scales(one, read, write), x * read[:, None, None]
        back = lambda a: a / write[:, None, None]
        return folded(x), back(one(scaled)), folded.encode(x), back(one.encode(scaled))

    with jax.enable_x64(True):
        parts, b_dec = weights()
        skip = jnp.asarray(np.random.default_rng(5).standard_normal((D, E)))
        scales = jnp.asarray([0.5, 2, 3.0]), jnp.asarray([1.5, 0.3, 4.0])
        weighted = (lambda a: TopK(3, weighted=True), lambda a: BatchTopK(3, weighted=True, threshold=jnp.asarray(0.5)))
        for activation in (lambda a: Jump(jnp.asarray(a)), lambda a: TopK(3), *weighted):
            y, want_y, z, want_z = both(cross_layer(parts, b_dec, activation, skip), jnp.asarray(X), *scales)
            np.testing.assert_allclose(y, want_y, rtol=1e-9, atol=1e-12)
            if activation not in weighted:  # their latents are as large as what they write
                np.testing.assert_allclose(z, want_z, rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(z > 0, want_z > 0)


@pytest.mark.slow
def test_a_trained_one_works_on_raw_activations():
    """BatchTopK, exported as the JumpReLU that it is at inference."""
    log, model = [], toy()
    activation = BatchTopK(6, weighted=True, decay=0.3)
    config = CrossLayerConfig(PRE[:2], writes=POST[:2], activation=activation, window=2, **FIELDS)
    config = dataclasses.replace(config, optimizer=Adam(learning_rate=0.02, warmup=2), loss=(Reconstruction(),))
    whole = train_cross_layer(config, model, batch_at, log=Log(every=1, on_record=log.append, quiet=True))
    assert log[-1]["fvu"] < log[0]["fvu"]
    assert all(isinstance(source.activation, Jump) for source in whole.sources)
    tokens, keep = batch_at(99)
    kept = np.asarray(keep).reshape(-1)
    x, y = (harvest(model, names, tokens)[kept] for names in (PRE[:2], POST[:2]))
    figures = evaluate_rows(SideBySide(whole), [x], [y])
    assert figures.reconstruction.fvu < 1.2 * log[-1]["fvu"]
    np.testing.assert_allclose(figures.reconstruction.l0, log[-1]["l0"], rtol=0.5)


def test_products_take_the_precision_that_is_asked_for():
    config = CrossLayerConfig(PRE[:2], writes=POST[:2], activation=ReLU(), matmul="bfloat16", **FIELDS)
    learner = init_cross_layer_learner(config, jax.random.key(0), (D, D, E, E), jnp.zeros(2 * (D + E)))
    rows, variance = jnp.ones((8, 2 * (D + E))), jnp.ones(4)
    step = jax.make_jaxpr(lambda a: learn_cross_layer(config, a, rows, variance))(learner)
    products = re.findall(r"dot_general\[.*?\]\s", str(step), re.DOTALL)
    assert len(products) >= 8
    assert all("BF16_BF16_F32" in product for product in products)


def test_what_cannot_be_is_refused():
    for fields, says in (
        ({"writes": POST[:2]}, "3 values are read and 2 written"),
        ({"window": 0}, "window=0"),
        ({"activation": Gated()}, "not Gated"),
        ({"loss": (Matryoshka(),)}, "not Matryoshka"),
    ):
        with pytest.raises(UserError, match=says):
            CrossLayerConfig(PRE, **{"n_features": 64, **fields})
    config = CrossLayerConfig(PRE, n_features=4, activation=ReLU())
    with pytest.raises(UserError, match="one width"):
        init_cross_layer_learner(config, jax.random.key(0), (2, 3, 2), jnp.zeros(7))
    sae = init_transcoder(jax.random.key(0), 2, 2, 4, ReLU(), jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(UserError, match="only transcoders"):
        from_transcoders([dataclasses.replace(sae, centred=True)])
    with pytest.raises(UserError, match="different widths"):
        from_transcoders([sae, init_transcoder(jax.random.key(0), 2, 3, 4, ReLU(), jnp.zeros(2), jnp.zeros(3))])
