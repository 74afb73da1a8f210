"""Reading and writing: our probes find the directions and accuracies that follow from the parameters of the toy.

The reference is the population: Σ⁻¹θ, θ and D⁻¹θ in float64. The sheet of reference values has the cosines of one
sample of the same toy (two columns: .871 for logistic regression; 64 columns: .508, and .855 after the shuffle).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jax_interp import UserError
from jax_interp.probes import (
    LDA,
    Logistic,
    MassMean,
    class_shift,
    fit_probes,
    from_activations,
    shuffle_within_classes,
)
from jax_interp.probes.kind import Rows
from jax_interp.surgery import Add, at, edit
from jax_interp.toys.reading_and_writing import FLAT, WIDE, ReadingAndWritingConfig, reading_and_writing

KEYS = jax.random.split(jax.random.key(0), 4)
N = 4000


def cosine(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def fit(kind, x, y):
    return kind.fit(Rows(x, y, jnp.ones(len(x))), None, KEYS[3])


def accuracy(probe, x, y) -> float:
    return float(jnp.mean(probe.positive(x) == (y == 1)))


@pytest.fixture(scope="module", params=[FLAT, WIDE], ids=["2 columns", "64 columns"])
def setting(request):
    """(world, Σ in float64, training rows, test rows)"""
    world = reading_and_writing(KEYS[0], request.param)
    F = np.asarray(world.confounders, np.float64)
    covariance = request.param.spread**2 * F.T @ F + request.param.noise**2 * np.eye(request.param.d)
    return world, covariance, world.rows(KEYS[1], N), world.rows(KEYS[2], N)


def test_the_rows_have_the_moments_that_were_asked_for(setting):
    world, covariance, (x, y), _ = setting
    x, theta = np.asarray(x, np.float64), np.asarray(world.truth, np.float64)
    np.testing.assert_allclose(np.linalg.norm(theta), 1, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(world.confounders) @ theta, 0.5, atol=1e-6)  # 60°
    for label in (0, 1):
        rows = x[np.asarray(y) == label]
        standard_error = 6 * np.sqrt(np.diag(covariance) / len(rows))
        assert (np.abs(rows.mean(0) - (label - 0.5) * theta) < standard_error).all()
        assert np.abs(np.cov(rows.T) - covariance).max() < 8 * covariance.max() / len(rows) ** 0.5
    np.testing.assert_allclose(world.covariance, covariance, atol=1e-5)


def test_probes_find_the_directions_of_the_population(setting):
    world, covariance, (x, y), test = setting
    theta = np.asarray(world.truth, np.float64)
    reads = np.linalg.solve(covariance, theta)
    shuffled = theta / np.diag(covariance)
    x_shuffled = shuffle_within_classes(KEYS[3], x, y)
    found = {
        "mass mean": (fit(MassMean(), x, y), theta, 0.02),
        "whitened": (fit(MassMean(covariance=True), x, y), reads, 0.02),
        "LDA": (fit(LDA(), x, y), reads, 0.02),
        "shuffled": (fit(MassMean(covariance=True), x_shuffled, y), shuffled, 0.04),
    }
    for name, (probe, expected, tolerance) in found.items():
        assert cosine(probe.weight, expected) > 1 - tolerance, name
        np.testing.assert_allclose(cosine(probe.weight, theta), cosine(expected, theta), atol=0.03, err_msg=name)
        w = np.asarray(probe.weight, np.float64)
        rate = norm.cdf(theta @ w / 2 / np.sqrt(w @ covariance @ w))
        np.testing.assert_allclose(accuracy(probe, *test), rate, atol=5 * (0.25 / N) ** 0.5, err_msg=name)
    np.testing.assert_allclose(world.reading_direction(), reads, rtol=1e-3, atol=1e-3 * np.abs(reads).max())
    np.testing.assert_allclose(world.shuffled_direction(), shuffled, rtol=1e-4, atol=1e-5)
    closed = norm.cdf(np.sqrt(theta @ reads) / 2)
    np.testing.assert_allclose(world.accuracy(world.reading_direction()), closed, atol=1e-4)


SHEET = {
    "2 columns": (FLAT, {"reads": 0.8712, "orthogonal": 0.9999, "writes": 0.9991, "shuffled": 1.0}),
    "64 columns": (WIDE, {"reads": 0.508, "writes": 0.996, "shuffled": 0.855, "diagonal": 0.988}),
}
"""Cosines of one sample: with θ of the probes that read, write, and read after the shuffle; of the first with the part
of θ that is orthogonal to the confounder; of the third with D⁻¹θ."""


@pytest.mark.parametrize("name", SHEET)
def test_the_figures_of_the_reference_sheet_are_those_of_a_draw(name):
    """10 draws of the world and of 4000 rows; the sheet's figure is within three standard deviations of their mean."""
    config, sheet = SHEET[name]
    cos = lambda a, b: jnp.dot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)

    def draw(key):
        of_world, of_rows, of_shuffle = jax.random.split(key, 3)
        world = reading_and_writing(of_world, config)
        x, y = world.rows(of_rows, N)
        reads, writes = fit(MassMean(covariance=True), x, y).weight, fit(MassMean(), x, y).weight
        shuffled = fit(MassMean(covariance=True), shuffle_within_classes(of_shuffle, x, y), y).weight
        return {
            "reads": cos(reads, world.truth),
            "orthogonal": cos(reads, world.truth - 0.5 * world.confounders[0]),
            "writes": cos(writes, world.truth),
            "shuffled": cos(shuffled, world.truth),
            "diagonal": cos(shuffled, world.shuffled_direction()),
        }

    drawn = jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(KEYS[0], 10))
    for figure, value in sheet.items():
        draws = np.asarray(drawn[figure])
        assert abs(value - draws.mean()) < 3 * draws.std() + 2e-3, (figure, draws.mean(), draws.std())


def test_logistic_regression_reads_like_lda(setting):
    """The sheet: a cosine of 1.0000 between them in two columns, and .995 in 64."""
    world, covariance, (x, y), test = setting
    probe = fit_probes(Logistic(), from_activations(x, np.asarray(y))).probe()
    assert cosine(probe.direction(), fit(LDA(), x, y).weight) > 0.99
    assert cosine(probe.direction(), world.truth) == pytest.approx(0.8712 if len(world.truth) == 2 else 0.508, abs=0.03)
    w = np.asarray(probe.direction(), np.float64)
    rate = norm.cdf(np.asarray(world.truth) @ w / 2 / np.sqrt(w @ covariance @ w))
    np.testing.assert_allclose(accuracy(probe, *test), rate, atol=5 * (0.25 / N) ** 0.5)


def test_the_shuffle_depends_on_the_basis(setting):
    """In the basis of the eigenvectors of Σ, columns are uncorrelated already, and the shuffle changes no probe."""
    world, covariance, (x, y), _ = setting
    basis = jnp.asarray(np.linalg.eigh(covariance)[1], jnp.float32)
    there = fit(MassMean(covariance=True), shuffle_within_classes(KEYS[3], x, y, basis), y).weight
    assert cosine(there, world.reading_direction()) > 0.98


def test_standard_deviations_of_1_make_the_shuffled_probe_the_mean_difference(setting):
    world, covariance, (x, y), _ = setting
    sd = jnp.asarray(np.sqrt(np.diag(covariance)), jnp.float32)
    weight = fit(MassMean(covariance=True), shuffle_within_classes(KEYS[3], x / sd[None, :], y), y).weight
    assert cosine(weight * sd, world.truth) > 0.97


def test_the_mean_difference_writes_better(setting):
    """Equally long moves: along θ the model's answer moves by the whole length, along Σ⁻¹θ by the cosine."""
    world, _, (x, y), _ = setting
    for kind, reads in ((MassMean(), False), (MassMean(covariance=True), True)):
        probe = fit(kind, x, y)
        unit = probe.weight / jnp.linalg.norm(probe.weight)
        shift = edit(world, at("x", Add(unit)))(x) - world(x)
        np.testing.assert_allclose(shift, cosine(probe.weight, world.truth), atol=1e-4)
        moved = edit(world, at("x", Add(class_shift(probe, x, y))))(x) - world(x)
        expected = cosine(probe.weight, world.truth) ** 2 if reads else 1.0  # (θ·ŵ)(ŵ·θ)
        np.testing.assert_allclose(moved, expected, atol=0.06)


def test_what_makes_no_toy_is_refused():
    for config in ({"d": 4, "confounders": 4}, {"degrees": 0.0}, {"noise": 0.0}):
        with pytest.raises(UserError):
            ReadingAndWritingConfig(**config)
