"""The plots of a notebook or a script: maps over layers, heads and positions, attention, and coloured tokens.

    from jax_interp import plot

    plot.heads(effects)  # a notebook shows the value of the last line
    plot.patching({"residual stream": grid}, tokenizer.strings(tokens[0])).save("patching.svg")

Each function takes plain arrays and strings, and returns a `Drawing` or `ColouredTokens`, which a notebook displays and
`save` writes to a file. `Drawing.figure` is the matplotlib figure, for changes of your own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.views.attention_maps import attention_maps
from jax_interp.views.coloured_tokens import ColouredTokens
from jax_interp.views.direction_map import direction_map
from jax_interp.views.drawing import Drawing
from jax_interp.views.heatmap import matrix_map, patching_map
from jax_interp.views.lens_map import lens_map
from jax_interp.views.plane_map import plane_map

__all__ = [
    "ColouredTokens", "Drawing", "attention", "directions", "heads", "lens", "matrix", "patching", "plane", "tokens",
]  # fmt: skip


def tokens(strings: Sequence[str], values: Float[ArrayLike, " pos"], title: str = "") -> ColouredTokens:
    """Colour the tokens of a text by one number for each token.

    Args:
      strings: the tokens, as `tokenizer.strings` gives them.
      values: one number for each token. Positive numbers are blue, negative numbers are orange, and 0 has no colour.
        The largest absolute value has full colour. The tooltip of a token shows its number; NaN has no colour.
      title: the heading.

    Raises:
      UserError: the numbers are not one for each token.

    Example:
        plot.tokens(tokenizer.strings(tokens[0]), sae.encode(x)[:, 17], "feature 17")
    """
    return ColouredTokens(tuple(strings), tuple(_numbers(values, (len(strings),), "values").tolist()), title)


def heads(values: Float[ArrayLike, "layer head"], quantity: str = "effect") -> Drawing:
    """Draw one number for each head: rows are layers, columns are heads.

    Args:
      values: the numbers. Positive numbers are blue, negative numbers are orange.
      quantity: what the numbers are.
    """
    return matrix(values, "layer", "head", quantity)


def matrix(values: Float[ArrayLike, "row column"], rows: str, columns: str, quantity: str) -> Drawing:
    """Draw a matrix of numbers.

    Args:
      values: the numbers. Positive numbers are blue, negative numbers are orange.
      rows: what a row is.
      columns: what a column is.
      quantity: what the numbers are.

    Example:
        plot.matrix(importance["linear1"], "feature", "component", "causal importance")
    """
    figure = matrix_map(_numbers(values, (None, None), "values"), rows, columns, quantity)
    return Drawing(figure, f"{quantity}, by {rows} and {columns}")


def plane(
    points: Float[ArrayLike, "point 2"],
    values: Float[ArrayLike, " point"] | None = None,
    quantity: str = "value",
    axis_names: tuple[str, str] = ("component 1", "component 2"),
) -> Drawing:
    """Draw points of a plane, such as the reconstructions of a cluster of latents.

    Args:
      points: the points.
      values: a number for each point, shown by its colour. None: all have one colour.
      quantity: what the numbers are.
      axis_names: the labels of the axes.

    Raises:
      UserError: the points are not [point, 2], or the values are not one for each point.

    Example:
        plot.plane(cluster_reconstruction(codes, sae.W_dec, best.features).components(2))
    """
    xy = _numbers(points, (None, 2), "points")
    colours = None if values is None else _numbers(values, (len(xy),), "values")
    return Drawing(plane_map(xy, colours, axis_names, quantity), f"{len(xy)} points of a plane")


def directions(
    points: Float[ArrayLike, "point 2"],
    labels: Int[ArrayLike, " point"],
    directions: Mapping[str, Float[ArrayLike, "2"]],
    classes: tuple[str, str] = ("negative", "positive"),
    axis_names: tuple[str, str] = ("component 1", "component 2"),
) -> Drawing:
    """Draw two classes of points with the directions of probes, and the border between the classes for each direction.

    Args:
      points: the points.
      labels: the class of each point, 0 or 1.
      directions: name -> direction. All arrows have one length.
      classes: the names of the classes.
      axis_names: the labels of the axes.

    Raises:
      UserError: the points are not [point, 2], a direction is 0 or has another size, or there are not two classes.

    Example:
        plot.directions(x, y, {"mass-mean": one.direction(), "logistic regression": other.direction()})
    """
    xy, of = _numbers(points, (None, 2), "points"), np.asarray(labels)
    arrows = {name: _numbers(arrow, (2,), f"direction {name!r}") for name, arrow in directions.items()}
    if of.shape != (len(xy),) or set(np.unique(of)) != {0, 1}:
        raise UserError("labels must be 0 or 1 for each point, and both must occur")
    if zero := [name for name, arrow in arrows.items() if not np.linalg.norm(arrow) > 0]:
        raise UserError(f"the direction {zero[0]!r} has length 0")
    figure = direction_map(xy, of == 1, arrows, classes, axis_names)
    return Drawing(figure, f"{len(xy)} points of two classes, with {', '.join(arrows)}")


def patching(
    panels: Mapping[str, Float[ArrayLike, "layer pos"]],
    strings: Sequence[str],
    other: Sequence[str] | None = None,
    quantity: str = "answer recovered",
) -> Drawing:
    """Draw maps of activation patching: rows are layers, columns are positions, and each patched value has one panel.

    Args:
      panels: title -> numbers. 0 has no colour. Positive numbers are blue, negative numbers are orange.
      strings: the tokens of the patched run, one for each position.
      other: the tokens of the other run. Positions with different tokens are marked.
      quantity: what the numbers are; the label of the colour bar.

    Raises:
      UserError: a panel does not have one column for each token.
    """
    arrays = {name: _numbers(panel, (None, len(strings)), f"panel {name!r}") for name, panel in panels.items()}
    if not arrays:
        raise UserError("there is no panel to draw")
    return Drawing(patching_map(arrays, list(strings), other, quantity), f"{quantity}, by layer and position")


def attention(
    pattern: Float[ArrayLike, "head query key"], strings: Sequence[str], labels: Sequence[str] | None = None
) -> Drawing:
    """Draw attention patterns, one panel for each head: rows are queries, columns are keys.

    Args:
      pattern: attention weights of one text, for example `acts["blocks.1.attn.pattern"][0]`.
      strings: the tokens of the text.
      labels: the title of each head. None: its index.

    Raises:
      UserError: the pattern is not `[head, query, key]` with one query and one key for each token.
    """
    weights = _numbers(pattern, (None, len(strings), len(strings)), "pattern")
    titles = [f"head {i}" for i in range(len(weights))] if labels is None else list(labels)
    if len(titles) != len(weights):
        raise UserError(f"{len(titles)} labels for {len(weights)} heads")
    return Drawing(attention_maps(weights, list(strings), titles), "attention patterns")


def lens(
    words: Sequence[Sequence[str]], probabilities: Float[ArrayLike, "layer pos"], rows: Sequence[str],
    strings: Sequence[str],
) -> Drawing:  # fmt: skip
    """Draw what a lens predicts at each layer and position: the most likely token, coloured by its probability.

    Args:
      words: for each layer and position, the token to write into the cell.
      probabilities: for each cell, the probability, from 0 to 1.
      rows: the names of the layers, for example `lens.labels`.
      strings: the tokens of the text, one for each position.

    Example:
        p = jax.nn.softmax(lens.values[:, 0])  # [layer, pos, vocab]
        words = [tokenizer.strings(row) for row in p.argmax(-1)]
        plot.lens(words, p.max(-1), lens.labels, tokenizer.strings(tokens[0]))
    """
    numbers = _numbers(probabilities, (len(rows), len(strings)), "probabilities")
    if len(words) != len(rows) or any(len(row) != len(strings) for row in words):
        raise UserError(f"the words are not one for each of {len(rows)} rows and {len(strings)} positions")
    return Drawing(lens_map([list(row) for row in words], numbers, list(rows), list(strings)), "predictions by layer")


def _numbers(values: ArrayLike, shape: tuple[int | None, ...], name: str) -> np.ndarray:
    array = np.asarray(values).astype(float)
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise UserError(f"{name} has the shape {array.shape}; [{wanted}] is needed here (one text, without a batch)")
    return array
