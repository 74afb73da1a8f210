"""Thresholds of conditions: the published grid by brute force, and what held-out rows say about a lucky choice."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.steering.applying import Agreement, chosen_point, published_point


def drawn(seed: int, layers: int, rows: int, gap: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % 2 == 0
    noise = rng.normal(0, 0.1, (layers, rows))
    return {f"blocks.{i}.resid_pre": x + 0.4 + gap * (i == 1) * truth for i, x in enumerate(noise)}, truth


def brute_force(scores: dict[str, np.ndarray], truth: np.ndarray) -> tuple[str, float, bool, float]:
    """The grid as it was published: layers, thresholds, then the two directions; a better F1 replaces the best."""
    best, point = 0.0, None
    for address, values in scores.items():
        for threshold in np.arange(0.0, 1.0, 0.01):
            for smaller in (False, True):
                met = [(float(np.float32(v)) > threshold) == smaller for v in values]
                tp = sum(m and t for m, t in zip(met, truth, strict=True))
                fp = sum(m and not t for m, t in zip(met, truth, strict=True))
                fn = sum(t and not m for m, t in zip(met, truth, strict=True))
                f1 = 2 * tp / (2 * tp + fp + fn) if tp else 0.0
                if f1 > best:
                    best, point = f1, (address, round(threshold, 3), smaller, f1)
    return point


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gap", [0.15, -0.15, 0.0])
def test_the_published_grid(seed, gap):
    scores, truth = drawn(seed, 3, 24, gap)
    point = published_point(scores, truth)
    assert (point.address, point.threshold, point.above, point.chosen_on.f1) == brute_force(scores, truth)
    assert point.held_out is None


@pytest.mark.parametrize("sign", [1, -1])
def test_a_clear_gap_is_found_and_holds_on_other_rows(sign):
    scores, truth = drawn(0, 3, 40, 5.0 * sign)
    held_out = np.arange(40) >= 20
    point = chosen_point(scores, truth, held_out)
    assert (point.address, point.above) == ("blocks.1.resid_pre", sign > 0)
    assert point.chosen_on == point.held_out == Agreement(10, 0, 0, 10)
    assert point.held_out.f1 == point.held_out.balanced_accuracy == 1.0
    values, chosen = scores[point.address], ~held_out
    edges = sorted([values[chosen & truth], values[chosen & ~truth]], key=np.mean)
    assert point.threshold == pytest.approx((edges[0].max() + edges[1].min()) / 2, abs=1e-5)


def test_a_choice_among_noise_looks_good_until_other_rows_are_asked():
    found = []
    for seed in range(8):
        scores, truth = drawn(seed, 30, 40, 0.0)
        point = chosen_point(scores, truth, np.arange(40) >= 20)
        found.append((point.chosen_on.balanced_accuracy, point.held_out.balanced_accuracy))
    chosen, held_out = np.mean(found, axis=0)
    assert chosen > 0.75
    assert abs(held_out - 0.5) < 0.12


def test_figures_are_their_definitions():
    agreement = Agreement(hits=3, misses=1, false_alarms=2, rejections=4)
    assert agreement.f1 == pytest.approx(6 / 9)
    assert agreement.balanced_accuracy == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert Agreement(0, 2, 0, 2).f1 == 0.0
    assert np.isnan(Agreement(0, 0, 1, 1).balanced_accuracy)


def test_what_cannot_be_chosen_is_said():
    scores, truth = drawn(0, 1, 8, 0.0)
    with pytest.raises(UserError, match="rows held out need prompts of both classes"):
        chosen_point(scores, truth, np.arange(8) == 0)
    with pytest.raises(UserError, match="both classes need rows"):
        published_point(scores, np.ones(8))
    with pytest.raises(UserError, match="or are NaN"):
        published_point({"embed": np.full(8, np.nan)}, truth)
    with pytest.raises(UserError, match="has a hit"):
        published_point(scores, truth, low=3.0, high=3.0)
