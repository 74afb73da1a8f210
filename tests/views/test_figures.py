"""Figures: what is drawn is the data, axes say what they are, and the SVG takes the page's colours."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp.views.apd_report import linearity, spectrum
from jax_interp.views.curves import (
    binned,
    by_layer,
    density_histogram,
    loss_by_position,
    member_curves,
    numbered,
    training_curves,
)
from jax_interp.views.decomposition_report import losses
from jax_interp.views.heatmap import diverging, patching_map, shortened
from jax_interp.views.probabilities import next_token_bars
from jax_interp.views.style import VARIABLES, power_label, svg


def labelled(axes) -> bool:
    return bool(axes.get_title(loc="left") and axes.get_xlabel() and axes.get_ylabel())


def test_training_curves_are_the_log(results):
    records = results["dictionary"]["records"]
    figure = training_curves(records, k=4)
    loss, fvu, sparsity, dead = figure.axes
    assert all(labelled(axes) for axes in figure.axes)
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [record["loss"] for record in records])
    np.testing.assert_allclose(fvu.lines[0].get_ydata(), [record["fvu"] for record in records])
    np.testing.assert_allclose(fvu.lines[0].get_xdata(), [record["tokens"] / 1e6 for record in records])
    np.testing.assert_allclose(sparsity.lines[0].get_ydata(), 4.0)
    np.testing.assert_allclose(dead.lines[0].get_ydata(), [record["dead"] for record in records])


def test_k_of_several_sources_is_drawn_at_their_sum():
    sparsity = training_curves([{"tokens": 5, "loss": 1.0, "l0": 6}], k=3, sources=2).axes[2]
    np.testing.assert_allclose(sparsity.lines[1].get_ydata(), 6.0)
    assert sparsity.texts[0].get_text() == "2 · k = 6"


def test_each_member_of_a_sweep_has_its_curve():
    records = [
        {"tokens": t} | {f"member.{i}.{name}": (i + 1) * t for i in range(2) for name in ("fvu", "l0", "dead")}
        for t in (1, 2)
    ]
    records[1]["member.1.fvu"] = None  # diverged
    figure = member_curves(records, ["k 4", "k 8"])
    assert all(labelled(axes) for axes in figure.axes)
    np.testing.assert_array_equal([line.get_ydata() for line in figure.axes[0].lines], [[1, 2], [2, np.nan]])
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["k 4", "k 8"]


def test_labels_of_logarithmic_axes_are_plain_text():
    labels = [power_label(x) for x in (0.001, 0.5, 1, 10, 1e4, 1e5, 1e-6, 2e-9)]
    assert labels == ["0.001", "0.5", "1", "10", "10,000", "10⁵", "10⁻⁶", "2·10⁻⁹"]
    records = [{"step": 1, "Loss": 1e-6, "loss": 10.0}, {"step": 2, "Loss": 1e-3, "loss": 1.0}]
    figure = losses(records)
    figure.draw_without_rendering()
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert shown
    assert not any("$" in text or "mathdefault" in text for text in shown)


def test_figures_by_layer_are_the_bars():
    layer = {"reads": "blocks.3.a", "writes": "blocks.3.b", "fvu": 0.3, "l0": 5.0, "dead": 2}
    other = layer | {"reads": "blocks.11.a", "writes": "blocks.11.b", "fvu": None}
    figure = by_layer([layer, other], features=32)
    assert all(labelled(axes) for axes in figure.axes)
    fvu, l0, dead = ([bar.get_height() for bar in axes.patches] for axes in figure.axes)
    np.testing.assert_array_equal(fvu, [0.3, np.nan])
    assert (l0, dead) == ([5.0, 5.0], [2, 2])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["3", "11"]
    assert figure.axes[0].get_xlabel() == "blocks.*.b"
    assert numbered(["blocks.0.x", "blocks.1.y"]) == (["blocks.0.x", "blocks.1.y"], "")


def test_records_that_lack_a_metric_are_gaps():
    records = [{"step": 1, "loss": 1.0, "fvu": 1.0, "tokens": 5}, {"step": 2, "eval.loss": 3.0}]
    assert len(training_curves(records).axes[0].lines[0].get_xdata()) == 1
    assert training_curves([]).axes[0].get_title(loc="left")


def test_the_histogram_is_the_counts(results):
    density = results["evaluation"]["density"]
    (axes,) = density_histogram(density).axes
    assert [bar.get_height() for bar in axes.patches] == density["counts"]
    np.testing.assert_allclose([bar.get_x() for bar in axes.patches], density["log10_edges"][:-1])
    assert "3 of 32 never fired" in axes.texts[0].get_text()
    assert "features" in axes.get_ylabel()


def test_a_dictionary_that_never_fired_can_be_drawn():
    density = {"features": 5, "window": 10, "dead": 5, "log10_edges": [-1.0, 0.0], "counts": [0]}
    assert "5 of 5" in density_histogram(density).axes[0].texts[0].get_text()


def test_loss_by_position_is_the_binned_mean(results):
    loss = results["evaluation"]["cross_entropy"]
    (axes,) = loss_by_position(loss, bins=8).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert len(lines) == 4
    expected = np.reshape(loss["zero_by_position"], (8, 3)).mean(1)
    np.testing.assert_allclose(lines["replaced by zero"].get_ydata(), expected)
    np.testing.assert_allclose(lines["replaced by zero"].get_xdata(), 1 + 3 * np.arange(8))
    assert "nats" in axes.get_ylabel()
    assert "mean of 3 neighbours" in axes.get_xlabel()
    first = lines["unchanged model"].get_ydata()[0]
    assert first == pytest.approx(np.mean(loss["clean_by_position"][1:3])), "a position without a figure is left out"


def test_binning_keeps_a_short_last_group():
    middles, means = binned(np.array([1.0, 3.0, 5.0]), 2)
    np.testing.assert_allclose(middles, [0.5, 2.0])
    np.testing.assert_allclose(means, [2.0, 5.0])
    assert np.isnan(binned(np.array([np.nan]), 2)[1]).all()


def test_the_heat_map_is_the_panel(results):
    patched = results["patching"]
    panel = np.array(patched["panels"]["resid_pre"])
    figure = patching_map({"a": panel, "b": 2 * panel}, patched["corrupted_tokens"], patched["clean_tokens"])
    top, bottom, bar = figure.axes
    np.testing.assert_allclose(top.collections[0].get_array().reshape(panel.shape), panel)
    np.testing.assert_allclose(bottom.collections[0].get_array().reshape(panel.shape), 2 * panel)
    assert top.collections[0].norm.vmax == bottom.collections[0].norm.vmax == 2.0
    assert top.collections[0].norm.vmin == -2.0, "zero is in the middle of the colours"
    assert [label.get_text() for label in bottom.get_xticklabels()] == patched["corrupted_tokens"]
    differs = [label.get_fontweight() == "bold" for label in bottom.get_xticklabels()]
    assert differs == [False, True, False]
    assert top.get_ylabel() == "layer"
    assert top.yaxis_inverted()
    assert bar.get_ylabel()


def test_nothing_is_transparent_and_each_sign_has_its_colour():
    colours = diverging()
    assert colours(0.5)[3] < 0.01
    assert colours(0.0)[3] == colours(1.0)[3] == 1.0
    assert colours(0.0)[:3] != colours(1.0)[:3]


def test_labels_have_a_limit():
    assert shortened("<|endoftext|>") == "<|endoftex…"
    assert shortened("self") == "self"


def test_bars_are_the_probabilities(results):
    rows = results["intervention"]["probabilities"]
    (axes,) = next_token_bars(rows, {"clean": "as it is", "ablated": "without"}).axes
    widths = [[bar.get_width() for bar in group] for group in axes.containers]
    assert widths == [[0.9, 0.05], [0.4, 0.3]]
    assert axes.get_xlabel() == "probability"
    assert axes.get_legend().get_texts()[1].get_text() == "without"


def test_a_token_with_dollars_is_text(results, evil):
    rows = [row | {"token": "$\\foo$$_$"} for row in results["intervention"]["probabilities"]]
    assert "foo" in str(svg(next_token_bars(rows, {"clean": "as it is"}), evil))


def test_the_svg_takes_the_colours_of_the_page(results, evil):
    figure = density_histogram(results["evaluation"]["density"])
    out = str(svg(figure, evil))
    assert out.startswith("<svg")
    assert evil not in out
    assert "var(--ink, #1f2429)" in out
    for colour in VARIABLES:
        assert out.count(colour) == out.count(f", {colour})"), f"{colour} is left without its variable"
    assert out == str(svg(density_histogram(results["evaluation"]["density"]), evil)), "the same figure, the same file"


def test_losses_of_a_decomposition_and_their_weighted_sum_are_told_apart():
    records = [{"step": n, "Faithfulness": 0.5 / n, "SmoothL0": 3.0 * n, "loss": 7.0 + n, "l0": 2.0} for n in (1, 2)]
    left, right = losses(records).axes
    lines = {line.get_label(): line for line in left.lines}
    assert set(lines) == {"Faithfulness", "SmoothL0", "weighted sum"}
    np.testing.assert_allclose(lines["weighted sum"].get_ydata(), [8.0, 9.0])
    styles = [line.get_linestyle() for line in left.lines]
    assert styles == ["-", "-", "--"]
    np.testing.assert_allclose(right.lines[0].get_ydata(), 2.0)


def test_components_of_apd_are_drawn_in_the_order_of_their_shares():
    result = {"rate": [0.1, 0.4, 0.2], "singular_values": {"a": [[1.0, 0.2], [4.0, 0.0], [2.0, 1.0]]}}
    shares, values = spectrum(result).axes
    assert [bar.get_height() for bar in shares.patches] == [0.4, 0.2, 0.1]
    first, second = (line.get_ydata() for line in values.lines)
    np.testing.assert_allclose(first, [1.0, 0.5, 0.25])
    np.testing.assert_allclose(second, [0.0, 0.25, 0.05])


def test_linearity_is_drawn_beside_the_oracles():
    rows = [
        {"name": "L0", "value": 3.0},
        {"name": "all on", "raw": 0.0, "normalised": 0.0, "excess": 0.0},
        {"name": "strict", "raw": 1.0, "normalised": 0.5, "excess": 0.4},
    ]
    (axes,) = linearity(rows).axes
    mine, oracle = (line.get_xdata() for line in axes.lines)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["strict", "all on"]
    np.testing.assert_allclose(mine, [0.5, 1e-6])
    np.testing.assert_allclose(oracle, [0.1, 1e-6])
    without = [{**row, "excess": None} for row in rows[1:]]
    assert len(linearity(without).axes[0].lines) == 1


def test_losses_without_l0_are_one_panel():
    assert len(losses([{"step": 1, "loss": 1.0, "simplicity": 0.5}]).axes) == 1
