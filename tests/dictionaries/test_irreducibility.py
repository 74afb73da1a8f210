"""Separability and mixture index: closed forms, brute force in float64, invariances (Engels et al. 2025)."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.geometry import mixture_index, separability, separability_by_angle

N = 20_000


def points_of(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    ring = lambda turn: np.stack([np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)], axis=1)
    if name == "circle":
        return ring(np.arange(N) / N)
    if name == "circle, drawn":
        return ring(rng.random(N))
    if name == "heptagon with noise .15":
        return ring(rng.integers(0, 7, N) / 7) + 0.15 * rng.normal(size=(N, 2))
    if name == "Gaussian":
        return rng.normal(size=(N, 2))
    if name == "square":
        return rng.uniform(-1, 1, (N, 2))
    assert name == "one of two axes"
    return np.where(rng.random((N, 1)) < 0.5, [[1, 0]], [[0, 1]]) * rng.uniform(0.5, 1.5, (N, 1))


# The square: a stripe along one side. With t + w = 1 and w = ε √(1/3 + t²), half of the width 2w is M.
SQUARE = 0.1064


@pytest.mark.parametrize(
    ("name", "S", "M", "slack_of_S", "slack_of_M"),
    [
        # M in closed form: arcs of a stripe at c, (acos(c - w) - acos(c + w)) / π with w = .1 √(1/2 + c²), at c = .887
        ("circle", 1.50, 0.2186, 0.002, 0.0005),
        ("circle, drawn", 1.495, 0.2186, 0.003, 0.009),
        ("heptagon with noise .15", 0.75, 0.17, 0.02, 0.008),
        ("Gaussian", 0.002, 0.085, 0.002, 0.005),
        ("square", 0.0025, SQUARE, 0.002, 0.006),
        ("one of two axes", 1.0, 0.50, 0.001, 0.005),
    ],
)
def test_known_values(name, S, M, slack_of_S, slack_of_M):
    """The published anchors; a sample's maximum over stripes is a little above the true one."""
    x = points_of(name)
    assert separability(x, angles=20) == pytest.approx(S, abs=slack_of_S)
    assert mixture_index(x, directions=60).value == pytest.approx(M, abs=slack_of_M)


def test_a_circle_is_the_same_from_all_sides():
    by_angle = separability_by_angle(points_of("circle"), angles=20)
    assert by_angle.max() - by_angle.min() < 0.02
    found = mixture_index(points_of("circle"), directions=60)
    assert abs(found.offset) == pytest.approx(0.887, abs=0.01)  # not 0, where only .045 of the points are


def information_reference(x: np.ndarray, angle: float, bins: int) -> float:
    a, b = np.cos(angle) * x[:, 0] + np.sin(angle) * x[:, 1], np.cos(angle) * x[:, 1] - np.sin(angle) * x[:, 0]
    p = np.histogram2d(a, b, bins=bins)[0] / len(x)
    independent = p.sum(1)[:, None] * p.sum(0)[None]
    return float(np.sum(p[p > 0] * np.log2(p[p > 0] / independent[p > 0])))


def test_information_is_that_of_numpys_histogram():
    x = points_of("heptagon with noise .15")[:3000] @ [[2.0, 0.5], [0.0, 1.0]] + [3.0, -1.0]
    wanted = [information_reference(x, angle, 8) for angle in np.arange(12) * np.pi / 24]
    np.testing.assert_allclose(separability_by_angle(x, angles=12, bins=8), wanted, atol=2e-3)


@pytest.mark.parametrize("name", ["heptagon with noise .15", "one of two axes"])
def test_no_stripe_of_a_fine_grid_holds_more(name):
    """The best offset is exact: 20,000 offsets in float64 find no better one, and nearly as good a one."""
    x = points_of(name)[:400]
    best = 0.0
    for angle in np.arange(20) * np.pi / 20:
        z = np.sort(x @ [np.cos(angle), np.sin(angle)])
        centre = np.linspace(z[0] - 0.5, z[-1] + 0.5, 20_000)
        half = 0.1 * np.sqrt(np.mean(z**2) - 2 * centre * z.mean() + centre**2)
        held = np.searchsorted(z, centre + half, "left") - np.searchsorted(z, centre - half, "right")
        best = max(best, held.max() / len(z))
    found = mixture_index(x, directions=20)
    assert best <= found.value <= best + 2 / len(x)
    z = x @ np.array(found.direction) + found.offset
    assert np.mean(np.abs(z) < 0.1 * np.sqrt(np.mean(z**2))) == pytest.approx(found.value, abs=2 / len(x))


def test_moved_turned_and_scaled_points_have_the_same_figures():
    x = points_of("heptagon with noise .15")[:4000]
    turned = x @ [[0, 1], [-1, 0]] * 250 + [1e4, -2e3]
    assert separability(turned, angles=20) == pytest.approx(separability(x, angles=20), abs=5e-3)
    assert mixture_index(turned).value == pytest.approx(mixture_index(x).value, abs=2e-3)


def test_equal_points_hold_nothing():
    assert mixture_index(np.ones((5, 2))).value == 0
    assert separability(np.ones((5, 2))) == 0


@pytest.mark.parametrize("points", [np.ones((5, 3)), np.ones((1, 2)), np.array([[0, 1], [np.nan, 2]]), np.ones(4)])
def test_what_is_no_set_of_points_is_refused(points):
    for measure in (separability, mixture_index):
        with pytest.raises(UserError, match="point"):
            measure(points)
