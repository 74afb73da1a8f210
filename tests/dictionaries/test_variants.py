"""Every activation with its losses against dense float64 written from the papers' equations, gradients included."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import train_dictionary, variants
from jax_interp.dictionaries.activations import (
    AbsTopK,
    BatchTopK,
    Gate,
    GroupMax,
    Jump,
    JumpReLU,
    MatchingPursuit,
    ReLU,
    TopK,
)
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.losses import (
    L0,
    L1,
    AnnealedLp,
    AuxK,
    FrozenDecoder,
    GateL1,
    GhostGradients,
    Matryoshka,
    MultiTopK,
    PreActivation,
    Reconstruction,
    Tanh,
    TargetL0,
)
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.term import snake, total
from jax_interp.training import Log

D, M, ROWS, V = 8, 24, 30, 5.0
sg = jax.lax.stop_gradient


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def arrays(seed, **more):
    """Random parameters, float64, decoder rows of all lengths."""
    shapes = {"W_enc": (D, M), "b_enc": (M,), "W_dec": (M, D), "b_dec": (D,)} | more
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(key, shapes[name], jnp.float64) for name, key in zip(shapes, keys)}


def forward_of(dictionary, x, y, *, dead=None, progress=1.0):
    activation = dictionary.activation
    code = getattr(activation, "encode_batch", activation.encode)(dictionary, x)
    dead = jnp.zeros(M, bool) if dead is None else dead
    y_hat = dictionary.reconstruct(code, x)
    scalar = lambda a: jnp.asarray(a, jnp.float64)
    return Forward(dictionary, x, y, code, y_hat, dead, scalar(V), scalar(progress), jax.random.key(0))


def agrees(ours, reference, params):
    """Value and every gradient."""
    got, got_grad = jax.jit(jax.value_and_grad(ours))(params)
    want, want_grad = jax.jit(jax.value_and_grad(reference))(params)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    for name in params:
        np.testing.assert_allclose(got_grad[name], want_grad[name], rtol=1e-7, atol=1e-10, err_msg=name)


def loss_of(make, terms, x, **options):
    return lambda p: total(terms, forward_of(make(p), x, x, **options))[0]


def fvu(p, x, z, bias=None):
    return ((x - z @ p["W_dec"] - (p["b_dec"] if bias is None else bias)) ** 2).sum(1).mean() / V


def pre(p, x):
    return (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]


X = np.random.default_rng(0).standard_normal((ROWS, D)) * 2


@pytest.fixture
def numpy_promotion():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


BASE = ("W_enc", "b_enc", "W_dec", "b_dec")


def with_activation(activation):
    return lambda p: Dictionary(*(p[name] for name in BASE), activation(p))


def relu_l1(p, weight):
    z = jax.nn.relu(pre(p, X))
    return fvu(p, X, z) + 0.3 * (z * weight(p)).sum(1).mean()


def relu_annealed(p):
    z = jax.nn.relu(pre(p, X))
    power = 1 - 0.8 * (0.6 - 0.3) / 0.7
    penalty = jnp.where(z > 0, jnp.where(z > 0, z, 1.0) ** power, 0.0).sum(1).mean()
    return fvu(p, X, z) + 0.3 * sg(z.sum(1).mean() / penalty) * penalty


def gated(p):
    linear = (X - p["b_dec"]) @ p["W_enc"]
    gate = linear + p["b_enc"]
    z = sg((gate > 0).astype(float)) * jax.nn.relu(linear * jnp.exp(p["r_mag"]) + p["b_mag"])
    aux = ((X - jax.nn.relu(gate) @ sg(p["W_dec"]) - sg(p["b_dec"])) ** 2).sum(1).mean() / V
    return fvu(p, X, z) + 0.3 * jax.nn.relu(gate).sum(1).mean() + aux


def largest(scores, n):
    return scores >= jnp.sort(scores.ravel())[-n]


def topk(p, k=4):
    scores = pre(p, X)
    return jnp.where(scores >= jnp.sort(scores, 1)[:, -k][:, None], jax.nn.relu(scores), 0.0)


def abs_topk(p, k=4):
    scores = pre(p, X)
    size = jnp.abs(scores)
    return jnp.where(size >= jnp.sort(size, 1)[:, -k][:, None], scores, 0.0)


def abs_topk_aux(p, n_dead=20, k_aux=3):
    z = abs_topk(p)
    error = sg(X - z @ p["W_dec"] - p["b_dec"])
    size = jnp.where(jnp.arange(len(p["b_enc"])) < n_dead, jnp.abs(pre(p, X)), -1.0)
    dead = jnp.where(size >= jnp.sort(size, 1)[:, -k_aux][:, None], pre(p, X), 0.0)
    rest = ((error - dead @ p["W_dec"]) ** 2).sum()
    return fvu(p, X, z) + 0.5 * rest / ((error - error.mean(0)) ** 2).sum()


def batch_topk(p, k=4):
    return jnp.where(largest(pre(p, X), k * ROWS), jax.nn.relu(pre(p, X)), 0.0)


def group_max(p, k=4):
    groups = pre(p, X).reshape(ROWS, k, M // k)
    return jnp.where(groups == groups.max(2, keepdims=True), jax.nn.relu(groups), 0.0).reshape(ROWS, M)


def matryoshka(p):
    z = batch_topk(p)
    prefixes = [round(M * f) for f in (0.125, 0.5)] + [M]
    return jnp.stack([fvu(p, X, z.at[:, n:].set(0.0)) for n in prefixes]).mean()


def pursuit(p, k=3):
    rest, x_hat = X - p["b_dec"], p["b_dec"] + 0 * X
    taken = jnp.zeros((ROWS, M), bool)
    for _ in range(k):
        fit = jnp.where(taken, -jnp.inf, sg(rest @ p["W_dec"].T))
        on = jax.nn.one_hot(fit.argmax(1), M)
        z = jax.nn.relu((rest[:, None] * p["W_dec"]).sum(2) * on)
        rest, x_hat, taken = rest - z @ p["W_dec"], x_hat + z @ p["W_dec"], taken | (on > 0)
    return ((X - x_hat) ** 2).sum(1).mean() / V


def ghost(p):
    scores = pre(p, X)
    z = jax.nn.relu(scores)
    residual = sg(X - z @ p["W_dec"] - p["b_dec"])
    g = jnp.exp(scores[:, :5]) @ p["W_dec"][:5]
    norm = lambda a: jnp.sqrt((a**2).sum(1, keepdims=True))
    g = g * sg(norm(residual) / (2 * norm(g) + 1e-6))
    of_entry = (g - residual) ** 2 / norm(residual)  # rescaled to the error entry by entry, as the published code does
    return fvu(p, X, z) + (sg(residual**2 / (of_entry + 1e-6)) * of_entry).sum(1).mean() / V


def row_norm(p):
    return jnp.sqrt((p["W_dec"] ** 2).sum(1))


CASES = {
    "ReLU, L1": ((Reconstruction(), L1(0.3)), lambda p: ReLU(), {}, lambda p: relu_l1(p, lambda p: 1.0), {}),
    "ReLU, weighted L1": (
        (Reconstruction(), L1(0.3, weight="l1_of_norms")), lambda p: ReLU(), {}, lambda p: relu_l1(p, row_norm), {},
    ),
    "ReLU, p annealed": (
        (Reconstruction(), AnnealedLp(0.3, start=0.3, end_p=0.2, warmup=0.0)), lambda p: ReLU(), {},
        relu_annealed, {"progress": 0.6},
    ),
    "ReLU, ghost gradients": (
        (Reconstruction(), GhostGradients()), lambda p: ReLU(), {}, ghost, {"dead": jnp.arange(M) < 5},
    ),
    "Gated": (
        (Reconstruction(), GateL1(0.3), FrozenDecoder()), lambda p: Gate(p["r_mag"], p["b_mag"]),
        {"r_mag": (M,), "b_mag": (M,)}, gated, {},
    ),
    "TopK": ((Reconstruction(),), lambda p: TopK(4), {}, lambda p: fvu(p, X, topk(p)), {}),
    "AbsTopK": ((Reconstruction(),), lambda p: AbsTopK(4), {}, lambda p: fvu(p, X, abs_topk(p)), {}),
    "AbsTopK, AuxK": (
        (Reconstruction(), AuxK(0.5, k=3)), lambda p: AbsTopK(4), {}, abs_topk_aux, {"dead": jnp.arange(M) < 20},
    ),
    "Multi-TopK": (
        (Reconstruction(), MultiTopK(0.5, factor=3)), lambda p: TopK(4), {},
        lambda p: fvu(p, X, topk(p)) + 0.5 * fvu(p, X, topk(p, 12)), {},
    ),
    "GroupMax": ((Reconstruction(),), lambda p: GroupMax(4), {}, lambda p: fvu(p, X, group_max(p)), {}),
    "BatchTopK": (
        (Reconstruction(),), lambda p: BatchTopK(4, threshold=jnp.asarray(-1.0)), {},
        lambda p: fvu(p, X, batch_topk(p)), {},
    ),
    "Matryoshka": (
        (Matryoshka(fractions=(0.125, 0.5)),), lambda p: BatchTopK(4, threshold=jnp.asarray(-1.0)), {}, matryoshka, {},
    ),
    "matching pursuit": ((Reconstruction(),), lambda p: MatchingPursuit(3), {}, pursuit, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_the_equations(name, numpy_promotion):
    terms, activation, more, reference, options = CASES[name]
    agrees(loss_of(with_activation(activation), terms, jnp.asarray(X), **options), reference, arrays(3, **more))


def test_multi_topk_widens_what_a_sweep_has_narrowed(numpy_promotion):
    """k=6, of which a sweep keeps 2: three times as many are 6."""
    make = with_activation(lambda p: TopK(6, limit=jnp.asarray(2.0)))
    agrees(
        loss_of(make, (Reconstruction(), MultiTopK(0.5, factor=3)), jnp.asarray(X)),
        lambda p: fvu(p, X, topk(p, 2)) + 0.5 * fvu(p, X, topk(p, 6)),
        arrays(3),
    )


def test_a_frozen_decoder_leaves_a_skip_what_it_explains(numpy_promotion):
    """Where the skip is the whole answer the gate has nothing to do."""
    p, W = arrays(7, r_mag=(M,), b_mag=(M,)), np.random.default_rng(1).standard_normal((D, D))
    silent = p | {"W_enc": 0 * p["W_enc"], "b_enc": 0 * p["b_enc"] - 1, "b_dec": 0 * p["b_dec"]}
    one = with_activation(lambda p: Gate(p["r_mag"], p["b_mag"]))(silent)
    one = dataclasses.replace(one, W_skip=jnp.asarray(W), centred=False)
    x = jnp.asarray(X)
    np.testing.assert_allclose(FrozenDecoder()(forward_of(one, x, x @ W)), 0, atol=1e-20)


def test_jumprelu_gradients_are_the_papers_estimates(numpy_promotion):
    """The estimates are not derivatives of anything: each is computed by hand, from the cotangent of the code."""
    eps, p = 0.7, arrays(4, log=(M,))
    make = with_activation(lambda p: Jump(p["log"], bandwidth=eps))
    theta, scores = np.exp(np.asarray(p["log"])), np.asarray(pre(p, X))
    near, on = abs(scores - theta) < eps / 2, scores > theta
    z = scores * on
    error = X - z @ np.asarray(p["W_dec"]) - np.asarray(p["b_dec"])
    g = -2 * error @ np.asarray(p["W_dec"]).T / ROWS / V  # of the reconstruction, with respect to the code
    value, grad = jax.value_and_grad(loss_of(make, (Reconstruction(),), jnp.asarray(X)))(p)
    np.testing.assert_allclose(value, (error**2).sum(1).mean() / V, rtol=1e-9)
    np.testing.assert_allclose(grad["b_enc"], (g * on).sum(0), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(grad["log"], (-theta / eps * (g * near).sum(0)) * theta, rtol=1e-7, atol=1e-12)

    l0 = on.sum(1).mean()
    for term, value_of, slope in (
        (L0(0.3), 0.3 * l0, 0.3),
        (TargetL0(0.3, target=5.0), 0.3 * (l0 / 5 - 1) ** 2, 0.3 * 2 * (l0 / 5 - 1) / 5),
    ):
        value, grad = jax.value_and_grad(loss_of(make, (term,), jnp.asarray(X)))(p)
        np.testing.assert_allclose(value, value_of, rtol=1e-9)
        np.testing.assert_allclose(grad["log"], -slope / eps * near.sum(0) / ROWS * theta, rtol=1e-7, atol=1e-12)
        np.testing.assert_array_equal(grad["W_enc"], np.zeros((D, M)))  # no estimate reaches the pre-activation

    norm = np.linalg.norm(np.asarray(p["W_dec"]), axis=1)
    value = loss_of(make, (Tanh(0.3, scale=4.0),), jnp.asarray(X))(p)
    np.testing.assert_allclose(value, 0.3 * np.tanh(4 * z * norm).sum(1).mean(), rtol=1e-9)
    value = loss_of(make, (PreActivation(0.3),), jnp.asarray(X))(p)
    np.testing.assert_allclose(value, 0.3 * (np.maximum(theta - scores, 0) * norm).sum(1).mean(), rtol=1e-9)


def test_a_gated_dictionary_is_a_jumprelu(numpy_promotion):
    p = arrays(5, r_mag=(M,), b_mag=(M,))
    one = with_activation(lambda p: Gate(p["r_mag"], p["b_mag"]))(p)
    same = one.activation.as_jumprelu(one)
    assert isinstance(same.activation, Jump)
    np.testing.assert_allclose(same.encode(X), one.encode(X), rtol=1e-9)
    assert 0 < (np.asarray(one.encode(X)) > 0).mean() < 0.5


def test_the_running_threshold_follows_the_least_value_on():
    p = arrays(7)
    one = with_activation(lambda p: BatchTopK(3, decay=0.9, threshold=jnp.asarray(-1.0)))(p)
    code = one.activation.encode_batch(one, jnp.asarray(X))
    least = float(code.values[code.values > 0].min())
    first = one.activation.observe(one, code)
    np.testing.assert_allclose(first.threshold, least)
    again = dataclasses.replace(one.activation, threshold=jnp.asarray(5.0)).observe(one, code)
    np.testing.assert_allclose(again.threshold, 0.9 * 5 + 0.1 * least)


def test_a_term_with_an_activation_that_it_does_not_go_with_is_refused():
    p, x = arrays(8), jnp.asarray(X)
    for term, activation, says in (
        (AnnealedLp(), TopK(4), "AnnealedLp acts on pre-activations, and TopK computes only"),
        (L0(), ReLU(), "L0 trains thresholds, ReLU has none"),
        (GateL1(), ReLU(), "GateL1 trains a gate, ReLU has none"),
        (MultiTopK(), ReLU(), "MultiTopK needs an activation with a k"),
        (AuxK(k=0), TopK(4), "from 1 to n_features"),
        (L1(), AbsTopK(4), "latents of AbsTopK can be negative"),
        (MultiTopK(factor=2), GroupMax(8), "cannot be cut into k=16"),
    ):
        with pytest.raises(UserError, match=says):
            loss_of(with_activation(lambda p, a=activation: a), (term,), x)(p)
    for make, says in (
        (lambda: Matryoshka(fractions=(0.5, 0.2)), "ascending"),
        (lambda: Matryoshka(random=-2), "at least 0"),
        (lambda: TargetL0(target=0.0), "above 0"),
        (lambda: AnnealedLp(start=1.0), "below 1"),
        (lambda: JumpReLU(-1.0), "both above 0"),
        (lambda: JumpReLU(bandwidth=0.0), "both above 0"),
    ):
        with pytest.raises(UserError, match=says):
            make()
    assert [snake(n) for n in ("AuxK", "L1", "FrozenDecoder", "TargetL0")] == [
        "aux_k",
        "l1",
        "frozen_decoder",
        "target_l0",
    ]


VARIANTS = {
    "relu": lambda a, **f: variants.relu(a, 0.1, **f),
    "april": lambda a, **f: variants.april(a, 0.1, **f),
    "p_anneal": lambda a, **f: variants.p_anneal(a, 0.1, **f),
    "gated": lambda a, **f: variants.gated(a, 0.1, **f),
    "jumprelu": lambda a, **f: variants.jumprelu(a, 0.01, **f),
    "tanh_jumprelu": lambda a, **f: variants.tanh_jumprelu(a, 0.01, **f),
    "topk": lambda a, **f: variants.topk(a, 4, multi=True, **f),
    "group_max": lambda a, **f: variants.group_max(a, 4, **f),
    "batch_topk": lambda a, **f: variants.batch_topk(a, 4, **f),
    "matryoshka": lambda a, **f: variants.matryoshka(a, 4, random=3, **f),
    "matching_pursuit": lambda a, **f: variants.matching_pursuit(a, 4, **f),
    "transcoder": lambda a, **f: variants.transcoder("blocks.1.resid_pre", a, 4, skip=True, **f),
    "crosscoder": lambda a, **f: variants.crosscoder(("blocks.0.resid_post", a), 0.05, **f),
    "batch_topk_crosscoder": lambda a, **f: variants.batch_topk_crosscoder(("blocks.0.resid_post", a), 4, **f),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns(name):
    log = []
    with jax.enable_x64(False):
        config = VARIANTS[name]("blocks.1.resid_post", n_features=64, steps=80, buffer=600, dead_after=2000)
        train_dictionary(config, toy(), batch_at, log=Log(every=10, on_record=log.append, quiet=True))
    assert log[-1]["fvu"] < 0.9 * log[0]["fvu"]
