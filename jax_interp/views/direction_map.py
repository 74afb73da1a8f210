"""Points of two classes in a plane, with the directions that probes found."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jax_interp.core.terminal import printable
from jax_interp.views.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED, canvas, legend_beside, styled

_LINES = (GREEN, PURPLE, RED, INK, MUTED)


@styled
def direction_map(
    points: Float[np.ndarray, "point 2"],
    positive: Bool[np.ndarray, " point"],
    directions: Mapping[str, Float[np.ndarray, "2"]],
    classes: tuple[str, str],
    axis_names: tuple[str, str],
) -> Figure:
    """A scatter of two classes, with an arrow for each direction and the border of a probe along it as a dashed line.

    The arrows begin at the midpoint of the class means and have one length. The border is orthogonal to the arrow.

    Args:
      points: the points.
      positive: which points are of the second class.
      directions: name -> direction.
      classes: the names of the classes.
      axis_names: the labels of the axes.
    """
    figure, (axes,) = canvas(6.4, 4.4)
    for chosen, color, name in ((~positive, ORANGE, classes[0]), (positive, BLUE, classes[1])):
        alpha = min(1.0, max(0.12, 250 / max(len(points), 1)))
        axes.scatter(*points[chosen].T, s=9, alpha=alpha, lw=0, color=color)
        axes.scatter([], [], s=18, lw=0, color=color, label=printable(name))  # the legend has no faint marks
    middle = (points[positive].mean(0) + points[~positive].mean(0)) / 2
    length = 0.3 * float(np.quantile(np.linalg.norm(points - middle, axis=1), 0.99))
    for number, (name, direction) in enumerate(directions.items()):
        _arrow(axes, middle, length * direction / np.linalg.norm(direction), _LINES[number % len(_LINES)], name)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel=printable(axis_names[0]), ylabel=printable(axis_names[1]))
    legend_beside(axes)
    return figure


def _arrow(axes: Axes, start: Float[np.ndarray, "2"], step: Float[np.ndarray, "2"], color: str, name: str) -> None:
    border = 2.8 * np.array([-step[1], step[0]])
    axes.plot(*np.stack([start - border, start + border]).T, color=color, lw=1.0, ls="--", zorder=3)
    style = {"arrowstyle": "-|>", "color": color, "lw": 2.2, "shrinkA": 0, "shrinkB": 0}
    (x, y), (to_x, to_y) = start.tolist(), (start + step).tolist()
    axes.annotate("", (to_x, to_y), (x, y), arrowprops=style)
    axes.plot([], [], color=color, lw=2.2, label=printable(name))
