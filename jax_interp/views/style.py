"""The style of figures, and their conversion to SVG in the colours of a light or dark page.

Figures are drawn with default colours. `svg` replaces each colour by a CSS variable of the page (`--ink`, `--blue`,
...), with the default colour as fallback. One figure therefore fits both colour schemes, and also works outside a page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

Draw = TypeVar("Draw", bound=Callable[..., Any])

INK, MUTED, GRID = "#1f2429", "#6b7480", "#dfe3e8"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2563c9", "#c2620c", "#178a5a", "#7a4fc0", "#c4314b"
VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--line", BLUE: "--blue", ORANGE: "--orange", GREEN: "--green",
    PURPLE: "--purple", RED: "--red",
}  # fmt: skip

RC: Any = {
    "text.parse_math": False,  # a label may be a token with two dollar signs
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",  # letters look the same everywhere, and no font is downloaded
    "svg.hashsalt": "jax_interp",  # the same figure gives the same file
}


def canvas(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with a row of axes, in the style of the package. Nothing is registered with pyplot.

    Args:
      width: the width in inches.
      height: the height in inches.
      columns: the number of axes.
      options: further arguments of matplotlib's `subplots`.

    Example:
        figure, (left, right) = canvas(10, 3, 2)
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False, **options)
    return figure, list(axes.ravel())


def styled(draw: Draw) -> Draw:
    """Decorator: the function draws figures in the style of the package."""
    return matplotlib.rc_context(RC)(draw)


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with labels in plain text: 0.01, 1, 100, 10⁶.

    matplotlib's own labels of such an axis are formulas, which are not parsed here (`text.parse_math`).
    """
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_label(value)))
    axis.set_minor_formatter(NullFormatter())


def power_label(value: float) -> str:
    """A short label of a positive number: powers of ten with many digits are written 10⁻⁵."""
    if 1e-3 <= value < 1e5:
        return f"{value:,.12g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    power = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return power if float(mantissa) == 1 else f"{float(mantissa):g}·{power}"


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def legend_beside(axes: Axes, **options: Any) -> None:
    """A legend to the right of the axes, where it covers no line."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), **options)


def fading(color: str) -> LinearSegmentedColormap:
    """A colormap from transparent to `color`."""
    return LinearSegmentedColormap.from_list("fading", [(*to_rgb(color), 0.0), (*to_rgb(color), 1.0)])


def svg(figure: Figure, label: str) -> Markup:
    """A figure as an `<svg>` element for a page, in the colours of the page.

    Args:
      figure: the figure.
      label: a description for screen readers.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d{3})\d+", r"\1", path[0]), text)  # thousandths of a point
    for color, variable in VARIABLES.items():
        text = re.sub(re.escape(color), f"var({variable}, {color})", text, flags=re.IGNORECASE)
    width = figure.get_size_inches()[
        0
    ]  # the maximum: a narrow page shrinks the figure, a wide page does not enlarge it
    heading = Markup('<svg role="img" aria-label="{}" style="max-width: {:.2f}in"').format(label, width)
    return Markup(text.replace("<svg", str(heading), 1))
