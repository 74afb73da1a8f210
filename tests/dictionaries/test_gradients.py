"""Gradients of terms and forms against float64 closed forms in NumPy, written from the equations by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries.activations import Jump, ReLU
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.losses import L1, Forward, Matryoshka, PreActivation, Reconstruction, Tanh, total

B, D, E, M, V = 30, 8, 6, 24, 5.0
RNG = np.random.default_rng(0)
X, Y = 2 * RNG.standard_normal((B, D)), RNG.standard_normal((B, E))
KEY = jax.random.key(3)


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def numpy_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def gradient(make, terms, y, **arrays):
    """(value, gradients by name) of `terms` for the dictionary `make(**arrays)`, its inputs X."""
    scalar = lambda a: jnp.asarray(a, jnp.float64)

    def loss(p):
        dictionary = make(**p)
        code = dictionary.training_code(jnp.asarray(X))
        y_hat, dead = dictionary.reconstruct(code, jnp.asarray(X)), jnp.zeros(M, bool)
        forward = Forward(dictionary, jnp.asarray(X), y, code, y_hat, dead, scalar(V), scalar(1.0), KEY)
        return total(terms, forward)[0]

    value, grad = jax.jit(jax.value_and_grad(loss))({name: jnp.asarray(a) for name, a in arrays.items()})
    return value, {name: np.asarray(g) for name, g in grad.items()}


def agree(got, want):
    for name, g in want.items():
        np.testing.assert_allclose(got[name], g, rtol=1e-9, atol=1e-12, err_msg=name)


def weights(**more):
    shapes = {"W_enc": (D, M), "b_enc": (M,), "W_dec": (M, D), "b_dec": (D,)} | more
    return {name: RNG.standard_normal(shape) for name, shape in shapes.items()}


EPSILON, STRENGTH, SCALE = 0.7, 0.3, 4.0


@pytest.mark.parametrize("term", [Tanh(STRENGTH, scale=SCALE), PreActivation(STRENGTH)], ids=["tanh", "pre-activation"])
def test_terms_of_thresholds(term):
    """Of the jump the estimates: -(θ/ε) 1[|z - θ| < ε/2] for θ, 1[z > θ] for z. θ is exp(log)."""
    p = weights(log=(M,))
    make = lambda log, **base: Dictionary(activation=Jump(log, bandwidth=EPSILON), **base)
    value, got = gradient(make, (term,), jnp.asarray(X), **p)
    x, theta, n = X - p["b_dec"], np.exp(p["log"]), np.linalg.norm(p["W_dec"], axis=1)
    z = x @ p["W_enc"] + p["b_enc"]
    if isinstance(term, Tanh):
        f = z * (z > theta)
        assert 0 < (f > 0).mean() < 1
        slope = STRENGTH / B * SCALE / np.cosh(SCALE * f * n) ** 2  # with respect to f · n
        np.testing.assert_allclose(value, STRENGTH / B * np.tanh(SCALE * f * n).sum())
        of_z, of_n = slope * n * (z > theta), (slope * f).sum(0)
        of_theta = -theta / EPSILON * (slope * n * (abs(z - theta) < EPSILON / 2)).sum(0)
    else:
        short = np.maximum(theta - z, 0)
        np.testing.assert_allclose(value, STRENGTH / B * (short * n).sum())
        of_z, of_n = -STRENGTH / B * n * (z < theta), STRENGTH / B * short.sum(0)
        of_theta = STRENGTH / B * n * (z < theta).sum(0)
    assert (of_theta != 0).mean() > 0.5
    want = {"log": of_theta * theta, "b_enc": of_z.sum(0), "W_enc": x.T @ of_z, "b_dec": -(of_z @ p["W_enc"].T).sum(0)}
    agree(got, want | {"W_dec": (of_n / n)[:, None] * p["W_dec"]})


@pytest.mark.parametrize("weight", ["l1_of_norms", "l2_of_norms"])
def test_a_transcoder_of_two_values_with_a_skip(weight):
    """y is not x: y_hat = ReLU(x W_enc + b_enc) W_dec + b_dec + x W_skip; λ weighs f_i by its rows' norms, those at
    each value added up, or all together."""
    p = weights(W_dec=(M, E), b_dec=(E,), W_skip=(D, E))
    make = lambda **p: Dictionary(activation=ReLU(), centred=False, write_sites=2, **p)
    value, got = gradient(make, (Reconstruction(), L1(STRENGTH, weight=weight)), jnp.asarray(Y), **p)
    f = np.maximum(X @ p["W_enc"] + p["b_enc"], 0)
    error = f @ p["W_dec"] + p["b_dec"] + X @ p["W_skip"] - Y
    rows = p["W_dec"].reshape(M, 2, -1)
    norms = np.linalg.norm(rows, axis=2)
    n = norms.sum(1) if weight == "l1_of_norms" else np.linalg.norm(norms, axis=1)
    direction = rows / (norms if weight == "l1_of_norms" else n[:, None])[:, :, None]
    np.testing.assert_allclose(value, (error**2).sum() / B / V + STRENGTH / B * (f * n).sum())
    of_y = 2 * error / B / V
    of_z = (of_y @ p["W_dec"].T + STRENGTH / B * n) * (f > 0)
    agree(got, {
        "W_enc": X.T @ of_z, "b_enc": of_z.sum(0), "b_dec": of_y.sum(0), "W_skip": X.T @ of_y,
        "W_dec": f.T @ of_y + STRENGTH / B * f.sum(0)[:, None] * direction.reshape(M, E),
    })  # fmt: skip


def test_random_prefixes_of_a_matryoshka(numpy_promotion):
    """Those that the step's key draws, n = m·u² and at least 1, in ascending order, and the whole."""
    p = weights()
    make = lambda **p: Dictionary(activation=ReLU(), **p)
    value, got = gradient(make, (Matryoshka(random=5),), jnp.asarray(X), **p)
    u = np.asarray(jax.random.uniform(KEY, (4,)))
    ends = [*sorted(max(int(M * a * a), 1) for a in u), M]
    assert len(set(ends)) > 2
    x = X - p["b_dec"]
    f = np.maximum(x @ p["W_enc"] + p["b_enc"], 0)
    of_f, losses = np.zeros_like(f), []
    want = {"W_dec": np.zeros((M, D)), "b_dec": np.zeros(D)}
    for n in ends:
        error = f[:, :n] @ p["W_dec"][:n] - x
        losses.append((error**2).sum() / B / V)
        of_y = 2 * error / B / V / len(ends)
        of_f[:, :n] += of_y @ p["W_dec"][:n].T
        want["W_dec"][:n] += f[:, :n].T @ of_y
        want["b_dec"] += of_y.sum(0)
    of_z = of_f * (f > 0)
    want["b_dec"] -= (of_z @ p["W_enc"].T).sum(0)
    np.testing.assert_allclose(value, np.mean(losses))
    agree(got, want | {"W_enc": x.T @ of_z, "b_enc": of_z.sum(0)})


def test_random_prefixes_are_short_more_often():
    """P(n ≤ m s) = √s: half of the prefixes have less than a quarter of the features, and none has no feature."""
    rule = Matryoshka(random=2001)
    scalar = jnp.asarray(1.0)
    one = Dictionary(jnp.zeros((D, M)), jnp.zeros(M), jnp.zeros((M, D)), jnp.zeros(D), ReLU())
    forward = Forward(one, jnp.zeros((1, D)), jnp.zeros((1, D)), one.training_code(jnp.zeros((1, D))),
                      jnp.zeros((1, D)), jnp.zeros(M, bool), scalar, scalar, KEY)  # fmt: skip
    ends = np.asarray(rule._ends(forward))
    assert len(ends) == 2000
    assert ends.min() == 1
    assert ends.max() < M
    assert (np.diff(ends) >= 0).all()
    for part in (0.25, 0.5, 0.75):
        np.testing.assert_allclose((ends < M * part).mean(), part**0.5, atol=0.05)  # 4 standard deviations
