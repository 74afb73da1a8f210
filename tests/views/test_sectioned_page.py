"""Pages of sections: text from outside stays text, tables are whole, tokens have the colour of their sign."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
from jax_interp.views.probe_plots import Curve, effect_bars, roc_plot, site_sweep, transfer_matrix
from jax_interp.views.sectioned_page import ScoredText, Section, Table, sectioned_page


def test_text_from_outside_stays_text():
    odd = "</style><script>alert(1)</script>\x1b[2J"
    section = Section(odd, [odd], Table([odd], [[odd]]), texts=[ScoredText(odd, [odd], [1.0])], warning=odd)
    page = sectioned_page("probes", odd, {odd: odd}, [odd], [section])
    assert "<script" not in page
    assert "\x1b" not in page
    assert not re.search(r'(src|href)="(?!#)', page)


def test_tokens_have_the_colour_of_their_sign_and_strength():
    texts = [ScoredText("a", ["x", "y", "z"], [2.0, -1.0, float("nan")]), ScoredText("b", ["w"], [0.5])]
    page = sectioned_page("k", "t", {}, [], [Section("s", texts=texts)])
    cells = re.findall(r'<bdi class="(up|down)" style="--a:([\d.]+)"[^>]*>(\w)</bdi>', page)
    assert cells == [("up", "1.00", "x"), ("down", "0.50", "y"), ("up", "0.25", "w")]
    assert "<bdi>z</bdi>" in page


def test_a_row_of_another_length_is_refused():
    with pytest.raises(UserError, match="has the row"):
        Table(["a", "b"], [["1"]])


def test_the_plots_show_the_numbers_that_they_are_given():
    values = np.array([[0.9, 0.6], [np.nan, 0.8]])
    axes = transfer_matrix(values, ["cities", "larger"], ["cities", "larger"], "AUROC").axes[0]
    assert [(text.get_text(), text.get_fontweight()) for text in axes.texts] == [
        ("0.90", "bold"), ("0.60", "normal"), ("0.80", "bold"),
    ]  # fmt: skip
    curves = {"probe": Curve([0.5, 0.9], [0.4, 0.8], [0.6, 1.0]), "words": Curve([0.6, 0.6], reference=True)}
    axes = site_sweep(["blocks.0.mlp_out", "blocks.1.mlp_out"], curves, "AUROC", 0.5).axes[0]
    assert [line.get_label() for line in axes.lines][:2] == ["probe", "words"]
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [0.5, 0.9]
    bars = effect_bars({"a": {"probe": Estimate(0.5, 0.4, 0.7)}}, "NIE").axes[0].patches
    assert [bar.get_height() for bar in bars if isinstance(bar, Rectangle)] == [0.5]
    whole, low = roc_plot({"x": ([0.0, 0.5, 1.0], [0.0, 0.9, 1.0])}).axes
    assert np.asarray(whole.lines[0].get_ydata()).tolist() == [0.0, 0.9, 1.0]
    assert low.get_xscale() == "log"
