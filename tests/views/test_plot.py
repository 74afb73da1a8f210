"""The plots of a notebook: cells are the numbers, text from outside is text, wrong shapes are errors."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp import UserError, plot
from jax_interp.core.terminal import printable

TOKENS = ["a", "<b>", "\u202ec"]


def cells(drawing, panel=0):
    return np.asarray(drawing.figure.axes[panel].collections[0].get_array()).ravel()


def test_each_drawing_shows_its_numbers():
    r = np.random.default_rng(0)
    values, pattern, p = r.normal(size=(2, 3)), r.uniform(size=(2, 3, 3)), r.uniform(size=(2, 3))
    np.testing.assert_allclose(cells(plot.heads(values)), values.ravel())
    assert plot.matrix(values, "feature", "component", "x").figure.axes[0].get_ylabel() == "feature"
    np.testing.assert_allclose(cells(plot.patching({"x": values}, TOKENS)), values.ravel())
    attention = plot.attention(pattern, TOKENS)
    for i in range(2):
        np.testing.assert_allclose(cells(attention, i), pattern[i].ravel())
    lens = plot.lens([TOKENS, TOKENS], p, ["0", "1"], TOKENS)
    np.testing.assert_allclose(cells(lens), p.ravel())
    plane = plot.plane(values.T, [3.0, 2.0, 1.0], "n", ("<x>", TOKENS[2]))
    np.testing.assert_allclose(plane.figure.axes[0].collections[0].get_offsets(), values.T)
    np.testing.assert_allclose(cells(plane), [3, 2, 1])
    assert plane.figure.axes[0].get_ylabel() == printable(TOKENS[2])
    arrows = plot.directions(values.T, [0, 1, 1], {"<w>": [3.0, 4.0], TOKENS[2]: [0.0, -2.0]}).figure.axes[0]
    np.testing.assert_allclose(arrows.collections[0].get_offsets(), values.T[:1])
    steps = np.array([text.xyann if hasattr(text, "xyann") else text.xy for text in arrows.texts])
    tips = np.array([text.xy for text in arrows.texts]) - steps
    np.testing.assert_allclose(tips / np.linalg.norm(tips, axis=1)[:, None], [[0.6, 0.8], [0, -1]], atol=1e-6)
    assert arrows.get_legend().get_texts()[-1].get_text() == printable(TOKENS[2])
    assert [text.get_text() for text in lens.figure.axes[0].texts] == [printable(token) for token in TOKENS] * 2


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_drawing_is_saved_and_shown(tmp_path, suffix):
    drawing = plot.heads(np.eye(3))
    assert drawing.save(tmp_path / f"a.{suffix}").stat().st_size > 1000
    assert "<svg" in drawing._repr_html_()
    with pytest.raises(UserError, match="svg"):
        drawing.save(tmp_path / "a.docx")
    assert len(list(tmp_path.iterdir())) == 1


def test_tokens_are_coloured_by_their_numbers_and_escaped(tmp_path):
    view = plot.tokens(TOKENS, [2.0, -1.0, np.nan], "<script>")
    html = view._repr_html_()
    assert "&lt;b&gt;" in html
    assert not any(raw in html for raw in ("<b>", "<script>"))
    shares = [part.split("%")[0].split()[-1] for part in html.split("color-mix")[1:]]
    assert shares == ["85", "42", "0"]  # full colour for the largest, half of it for half, none for NaN
    assert html.count("<bdi") == 3  # a right-to-left token does not turn its neighbours
    assert "Content-Security-Policy" in view.save(tmp_path / "tokens.html").read_text()
    with pytest.raises(UserError, match=r"\.html"):
        view.save(tmp_path / "tokens.png")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot.tokens(TOKENS, [1.0]),
        lambda: plot.heads(np.zeros((1, 2, 3))),
        lambda: plot.plane(np.zeros((4, 3))),
        lambda: plot.plane(np.zeros((4, 2)), np.zeros(3)),
        lambda: plot.directions(np.eye(2), [0, 1], {"w": np.zeros(2)}),
        lambda: plot.directions(np.eye(2), [0, 1], {"w": np.ones(3)}),
        lambda: plot.directions(np.eye(2), [1, 1], {"w": np.ones(2)}),
        lambda: plot.patching({"x": np.zeros((2, 4))}, TOKENS),
        lambda: plot.patching({}, TOKENS),
        lambda: plot.attention(np.zeros((1, 2, 3, 3)), TOKENS),
        lambda: plot.attention(np.zeros((2, 3, 3)), TOKENS, ["one"]),
        lambda: plot.lens([TOKENS], np.zeros((1, 2)), ["0"], TOKENS),
        lambda: plot.lens([TOKENS[:2]], np.zeros((1, 3)), ["0"], TOKENS),
    ],
)
def test_numbers_of_another_shape_are_refused(draw):
    with pytest.raises(UserError):
        draw()
