"""Metrics against values counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import TIED, sparse, tiny

from jax_interp.core.errors import UserError
from jax_interp.decomposition import Components, decompose
from jax_interp.decomposition.importance import Importance, read_inputs
from jax_interp.decomposition.losses import ImportanceMasked, LossInputs, LossSettings, Unmasked
from jax_interp.decomposition.metrics import (
    agreement,
    alive,
    dense_error,
    hidden_report,
    identity_error,
    l0,
    mask_report,
    pgd_curve,
    pgd_error,
    recovery,
    spectrum,
)
from jax_interp.decomposition.metrics.masks import cross_entropy

KEY = jax.random.key(0)


def test_identity_and_dense_errors():
    perfect = np.zeros((3, 5))
    perfect[[0, 1, 2], [4, 0, 2]] = 1
    assert identity_error(perfect) == 0
    worse = perfect.copy()
    worse[0, 4], worse[1, 1] = 0.85, 0.3
    assert identity_error(worse) == 2
    assert identity_error(worse, 0.2) == 1
    assert identity_error(np.zeros((3, 5))) == 3
    assert identity_error(np.eye(3)[:, :2]) == 1  # a feature without a column
    # a greedy choice would take .95 first and pay for it
    assert identity_error(np.array([[0.95, 0.94], [0.93, 0.0]])) == 1
    dense = np.array([[1, 1, 0.05], [0.9, 0.2, 0], [0.1, 1, 0]])
    assert dense_error(dense, 2) == 0
    assert dense_error(dense, 1) == 2  # the second column has two entries above tolerance
    assert dense_error(dense, 3) == 1  # the third has none that is strong
    assert dense_error(dense, 2, min_entries=3) == 1 + 1


def test_sparsity():
    g = {"linear1": jnp.asarray([[0.5, 0.0, 0.05], [0.0, 0.0, 0.2]]), "blocks.*.up": jnp.ones((2, 3, 4))}
    counts = l0(g, 0.01)
    assert float(counts["linear1"]) == 1.5
    np.testing.assert_array_equal(counts["blocks.*.up"], [4, 4])
    np.testing.assert_array_equal(alive(g, 0.1)["linear1"], [True, False, True])
    np.testing.assert_allclose(spectrum(g)["linear1"], [0.25, 0.125, 0.0], rtol=1e-6)


def test_recovery_is_robust_to_the_dead():
    truth = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
    parts = Components(
        jnp.asarray([[1.0, 0.0, 0.01], [0.0, 1.0, 0.0]]), jnp.asarray([[0.9, 0.1], [0.0, 1.9], [1.0, 0.0]])
    )
    found = recovery(parts, truth)
    np.testing.assert_array_equal(found.owner, [0, 1])
    np.testing.assert_allclose(found.mmcs, (0.9 / 0.82**0.5 + 1) / 2, rtol=1e-5)
    np.testing.assert_allclose(found.ml2r, (0.82**0.5 + 0.95) / 2, rtol=1e-5)
    naive = recovery(parts, truth, least=0.0)  # the tiny third one fits better
    np.testing.assert_allclose(naive.ratio[0], 0.01, rtol=1e-5)


def test_two_runs_agree_up_to_order_sign_and_scale():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    one = Components(normal(6, 4), normal(4, 5))
    order = jnp.asarray([2, 0, 3, 1])
    other = Components(-2 * one.V[:, order], -0.5 * one.U[order])
    assert all(abs(v - 1) < 1e-5 for v in agreement(one, other).values())
    unrelated = Components(normal(6, 4), one.U)
    assert agreement(one, unrelated)["product"] < 0.8
    assert agreement(one, unrelated)["product"].shape == ()


def test_runs_agree_layer_by_layer():
    """The first layer in another order, the second's U at right angles; other shapes are refused."""
    V, U = jnp.eye(4)[:, :3], jnp.eye(5)[:3]
    one = Components(jnp.stack([V, V]), jnp.stack([U, U]))
    other = Components(jnp.stack([V[:, ::-1], V]), jnp.stack([U[::-1], jnp.roll(U, 3, axis=1)[:, ::-1]]))
    found = agreement(one, other)
    np.testing.assert_allclose(found["V"][0], 1)
    np.testing.assert_allclose(found["U"], [1, 0], atol=1e-12)
    np.testing.assert_allclose(found["product"], [1, 0], atol=1e-12)
    with pytest.raises(UserError, match="matrices of different shapes"):
        agreement(one, Components(V, U))


def test_stochastic_masks_of_reports_are_those_of_training():
    """One row and one component of importance 0, no Δ: a coin leaves the output of all on or of all off, a uniform
    number something between."""
    parts, x = decompose(tiny(), "linear1", C=1, key=jax.random.key(1)), jnp.full((1, 5), 0.5)
    lower = {"linear1": jnp.zeros((1, 1))}
    output, _, hidden = read_inputs(parts, x, outputs=True)
    for sampling in ("binomial", "continuous"):
        batch = LossInputs(
            parts, (x,), output, Importance(lower, lower, lower), hidden, 1.0, LossSettings(False, sampling)
        )
        errors = mask_report(batch, KEY).error
        ends = [float(errors["zero"]), float(errors["unmasked"])]
        assert ends[0] != pytest.approx(ends[1], rel=1e-2)
        assert any(float(errors["stochastic"]) == pytest.approx(end) for end in ends) == (sampling == "binomial")
        found = float(hidden_report(batch, KEY, relative=False)["stochastic"]["linear1"])
        own = x @ parts.of("linear1").product()  # 0 or all of it in place of x @ W
        ends = [float(jnp.mean((hidden["linear1"] - kept * own) ** 2)) for kept in (0.0, 1.0)]
        assert any(found == pytest.approx(end) for end in ends) == (sampling == "binomial")


def test_reports_under_masks():
    model, x = tiny(), sparse(KEY, batch=8, p=0.7)
    parts = decompose(model, "*", C=4, key=jax.random.key(1), tied=TIED)
    rng = np.random.default_rng(0)
    lower = {n: jnp.asarray(rng.random((8, 4)), jnp.float32) for n in parts.names}
    output, _, hidden = read_inputs(parts, x, outputs=True)
    batch = LossInputs(parts, (x,), output, Importance(lower, lower, lower), hidden)
    report = mask_report(batch, KEY)
    assert set(report.error) == {"ci", "unmasked", "stochastic", "random", "rounded", "zero"}
    np.testing.assert_allclose(report.error["ci"], ImportanceMasked()(batch, KEY), rtol=1e-5)
    np.testing.assert_allclose(report.error["unmasked"], Unmasked()(batch, KEY), rtol=1e-5)
    np.testing.assert_allclose(report.error["rounded"], report.error["unmasked"], rtol=1e-5)  # all above 0
    assert float(report.error_unrecovered["zero"]) == 1
    by_hidden = hidden_report(batch, KEY)
    assert set(by_hidden) == {"stochastic", "ci"}
    assert set(by_hidden["ci"]) == {"linear1", "linear2"}
    curve = pgd_curve(batch, KEY, steps=(5, 20))
    assert curve.shape == (2,)
    assert float(pgd_error(batch, KEY)) > float(report.error["stochastic"])
    logits = jnp.log(jnp.asarray([[[0.25, 0.75], [0.5, 0.5]]]))
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray([[1, -1]])), -np.log(0.75), rtol=1e-6)


def by_hand(kept: dict, x, V, U, b):
    """The tied toy in float64 with these masks of components and without Δ."""
    return np.maximum((((x @ V * kept["linear1"]) @ U) @ U.T * kept["linear2"]) @ V.T + b, 0)


def test_cross_entropies_and_what_is_not_recovered():
    """Outputs as logits of five tokens, with a row that has no label; from 0 at the target's to 1 with nothing on."""
    model, x = tiny(), sparse(KEY, batch=8, p=0.7)
    parts = decompose(model, "*", C=4, key=jax.random.key(1), tied=TIED)
    rng = np.random.default_rng(0)
    lower = {n: rng.random((8, 4)) for n in parts.names}
    likeliest, unlikeliest = (np.asarray(f(model(x), axis=1)) for f in (jnp.argmax, jnp.argmin))
    labels = np.where(np.arange(8) == 2, -1, likeliest)
    given = {n: jnp.asarray(g, jnp.float32) for n, g in lower.items()}
    output, _, hidden = read_inputs(parts, x, outputs=True)
    batch = LossInputs(
        parts, (x,), output, Importance(given, given, given), hidden, settings=LossSettings(compare="kl")
    )
    report = mask_report(batch, KEY, jnp.asarray(labels), threshold=0.5)
    X, V, U, W, b = (
        np.asarray(m, float)
        for m in (x, parts.of("linear1").V, parts.of("linear1").U, model.linear1.weight, model.linear2.bias)
    )
    log = lambda z: z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    ce = lambda z: -log(z)[np.arange(8), labels][labels >= 0].mean()
    right = np.maximum(X @ W @ W.T + b, 0)
    masks = {
        "ci": lower,
        "rounded": {n: g > 0.5 for n, g in lower.items()},
        "unmasked": {n: np.ones_like(g) for n, g in lower.items()},
        "zero": {n: np.zeros_like(g) for n, g in lower.items()},
    }
    outputs = {kind: by_hand(kept, X, V, U, b) for kind, kept in masks.items()}
    worst = ce(outputs["zero"]) - ce(right)
    kl = lambda z: (np.exp(log(right)) * (log(right) - log(z))).sum(axis=1).mean()
    assert report.ce is not None
    assert report.ce_unrecovered is not None
    np.testing.assert_allclose(report.ce["target"], ce(right), rtol=1e-4)
    for kind, z in outputs.items():
        np.testing.assert_allclose(report.ce[kind], ce(z), rtol=1e-4, err_msg=kind)
        np.testing.assert_allclose(report.ce_unrecovered[kind], (ce(z) - ce(right)) / worst, rtol=1e-3, err_msg=kind)
        np.testing.assert_allclose(report.error[kind], kl(z), rtol=1e-3, err_msg=kind)
        np.testing.assert_allclose(report.error_unrecovered[kind], kl(z) / kl(outputs["zero"]), rtol=1e-3)
    assert set(report.ce_unrecovered) == set(report.error)
    helped = mask_report(batch, KEY, jnp.asarray(unlikeliest), threshold=0.5)
    assert helped.ce is not None
    assert helped.ce_unrecovered is not None
    assert helped.ce["zero"] < helped.ce["target"]
    assert all(np.isnan(share) for share in helped.ce_unrecovered.values()), "nothing is lost by the ablation"


def test_hidden_errors_over_mean_squares():
    """Of both matrices under masks of a half: the first puts out half of x V U, the second half of what that gives."""
    model, x = tiny(), sparse(KEY, batch=8, p=0.7)
    parts = decompose(model, "*", C=4, key=jax.random.key(1), tied=TIED)
    half = {n: jnp.full((8, 4), 0.5) for n in parts.names}
    output, _, hidden = read_inputs(parts, x, outputs=True)
    batch = LossInputs(parts, (x,), output, Importance(half, half, half), hidden)
    X, W, b = (np.asarray(m, float) for m in (x, model.linear1.weight, model.linear2.bias))
    VU = np.asarray(parts.of("linear1").product(), float)
    right, got = (X @ W, X @ W @ W.T + b), (X @ VU / 2, X @ VU @ VU.T / 4 + b)
    for relative in (False, True):
        found = hidden_report(batch, KEY, relative)["ci"]
        for name, y, z in zip(("linear1", "linear2"), right, got, strict=True):
            want = np.mean((y - z) ** 2) / (np.mean(y**2) if relative else 1)
            np.testing.assert_allclose(found[name], want, rtol=1e-4, err_msg=name)
