"""Points of a plane, such as a feature of two dimensions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jax_interp.core.terminal import printable
from jax_interp.views.style import BLUE, canvas, styled


@styled
def plane_map(
    points: Float[np.ndarray, "point 2"],
    colours: Float[np.ndarray, " point"] | None,
    axis_names: tuple[str, str],
    quantity: str,
) -> Figure:
    """A scatter of points, with equal scales of both axes.

    Args:
      points: the points.
      colours: a number for each point; None: one colour.
      axis_names: the labels of the axes.
      quantity: what the numbers are.
    """
    figure, (axes,) = canvas(5.4 if colours is not None else 4.6, 4.4)
    options = {"color": BLUE} if colours is None else {"c": colours, "cmap": "viridis"}
    # many points would hide each other
    marks = axes.scatter(*points.T, s=9, alpha=min(1.0, max(0.15, 400 / max(len(points), 1))), lw=0, **options)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel=printable(axis_names[0]), ylabel=printable(axis_names[1]))
    if colours is not None:
        bar = figure.colorbar(marks, ax=axes, label=printable(quantity), shrink=0.8)
        if bar.solids is not None:
            bar.solids.set_alpha(1)
    return figure
