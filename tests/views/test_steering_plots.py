"""Plots of steering show the numbers that they are given, and the page of a report shows all of them."""

from __future__ import annotations

import numpy as np

from jax_interp.core.estimates import Estimate
from jax_interp.steering.measuring import Propensities, SideEffects, Size, SteeringReport, spread, steerability
from jax_interp.steering.measuring.sections import curve_of, sections
from jax_interp.steering.measuring.transfer import Cell, Transfer
from jax_interp.views.probe_plots import Curve
from jax_interp.views.sectioned_page import sectioned_page
from jax_interp.views.steering_plots import (
    DRAWN,
    dose_response,
    explained_variance,
    propensity_curves,
    slope_histogram,
    transfer_heatmap,
)

HALF = Estimate(0.5, 0.25, 0.75)


def test_each_question_has_a_line_in_the_colour_of_its_sign():
    values = np.asarray([[-1.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
    axes = propensity_curves([0.0, 1.0], values, Curve([0.0, 4 / 3], [-1, 0], [1, 2]), [2.0, -1.0, 3.0]).axes[0]
    labels = [line.get_label() for line in axes.lines]
    assert labels[0] == "anti-steerable"  # questions are drawn in the order of their slopes
    assert labels.index("mean") == 3
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [1.0, 0.0]
    many = np.zeros((DRAWN + 40, 2))
    axes = propensity_curves([0.0, 1.0], many, Curve([0.0, 0.0]), np.arange(DRAWN + 40.0).tolist()).axes[0]
    assert axes.get_title("left") == f"{DRAWN} of {DRAWN + 40} questions"
    assert len(axes.lines) == DRAWN + 2


def test_a_histogram_has_every_slope_on_its_side_of_zero():
    slopes = [-2.0, -1e-9, 0.0, 1.0, 1.0]
    axes = slope_histogram(slopes, Estimate(0.0, -1, 1), Estimate(0.4, 0.2, 0.6)).axes[0]
    below, above = (sum(bar.get_height() for bar in bars) for bars in axes.containers)
    assert (below, above) == (2, 3)
    assert all(bar.get_x() + bar.get_width() <= 1e-9 for bar in axes.containers[0] if bar.get_height())
    assert len(slope_histogram([0.0], HALF, HALF).axes[0].containers) == 2  # all slopes are 0


def test_bars_cells_and_panels_have_their_numbers():
    nan = float("nan")
    factors = {"letter": HALF, "yes_no": Estimate(nan, nan, nan)}
    axes = explained_variance(factors, {"letter": 0.1, "yes_no": 0.2}).axes[0]
    assert [bar.get_height() for bars in axes.containers if hasattr(bars, "patches") for bar in bars] == [0.5, 0.0]
    values = np.asarray([[1.0, 0.5], [nan, -1.0]])
    axes = transfer_heatmap(values, ["a", "b"], ["a", "b"], "slope", notes=np.full((2, 2), 0.25)).axes[0]
    assert [(text.get_text(), text.get_fontweight()) for text in axes.texts] == [
        ("1.00\n25 %", "bold"), ("0.50\n25 %", "normal"), ("-1.00\n25 %", "bold"),
    ]  # fmt: skip
    one, two = dose_response(
        [0, 1], {"KL": {"KL": Curve([0, 1])}, "loss": {"a": Curve([1, 2]), "b": Curve([3, 4])}}
    ).axes
    assert [one.get_title("left"), two.get_title("left")] == ["KL", "loss"]
    assert np.asarray(two.lines[1].get_ydata()).tolist() == [3, 4]


def report() -> SteeringReport:
    rng = np.random.default_rng(0)
    strengths = np.asarray([-1.0, 0.0, 1.0])
    m = rng.normal(size=(12, 1)) * strengths
    found = Propensities(
        "the set", strengths, m - 9, np.full_like(m, -9.0), np.arange(12) // 2, {"letter": ("A", "B") * 6}
    )
    some = spread(rng.normal(size=5))
    three = (some, some, some)
    effects = SideEffects("text", (-1.0, 0.0, 1.0), some, three, three, {"embed": (Size(some, 1.0, 1.0),) * 3})
    transfer = Transfer((-1.0, 0.0, 1.0), {"here": {"there": Cell(some, HALF, HALF, HALF)}})
    return SteeringReport("v", "answer", found, steerability(found), effects, transfer=transfer)


def test_a_page_has_every_figure_with_its_spread():
    page = sectioned_page("steer", "v", {}, [], sections(report()))
    for text in ("anti-steerable", "Nuisance factors", "Dose and response", "Transfer", "size at embed", "12"):
        assert text in page
    assert "two unlikely answers" in page  # P(either answer) is about e⁻⁹
    curve = curve_of(report().steerability.curve)
    assert len(curve.low) == len(curve.high) == 3
