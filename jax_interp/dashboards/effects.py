"""Effects of ablations on examples: of a feature on the loss, and of each context token on a unit.

The sequences of the examples are read from the text a second time, and run whole, so that each effect is that in its
own context. Examples are mapped over in pieces, in one compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jax_interp.core.errors import UserError
from jax_interp.dashboards.collector import Batches, ScoreFunction, Scores
from jax_interp.dashboards.feature_data import FeatureData
from jax_interp.dashboards.options import PageOptions
from jax_interp.dashboards.windows import Windows
from jax_interp.dictionaries.replacement import measure_errors, replacement
from jax_interp.surgery import Splice, Zero, at, edit
from jax_interp.surgery.contract import Dictionary, Model
from jax_interp.training.placement import automatic
from jax_interp.training.row_pieces import in_pieces

EMBEDDING = "embed"
"""The address of the embedding of tokens."""
READ_AGAIN = (
    "the batches cannot be read a second time, which effects of ablations need: give a list, or another object that "
    "starts anew each time it is iterated"
)
_AT_ONCE = 32
"""The number of sequences that run at once."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """Examples with their whole sequences, one row for each."""

    row: Int[np.ndarray, "example 2"]
    """The unit and the window of each example, as rows of the arrays of a `Windows`."""
    tokens: Int[np.ndarray, "example pos"]
    keep: Bool[np.ndarray, "example pos"]
    place: Int[np.ndarray, " example"]


def with_loss_effects(
    data: FeatureData, model: Model, address: str, dictionary: Dictionary, batches: Batches, options: PageOptions
) -> FeatureData:
    """Measure the effect on the loss of ablating a feature, on its first top and uniform examples.

    The dictionary is spliced in with its error term, and the feature is set to 0 at all positions. Without the ablation
    the spliced model is the model itself, so the difference is the effect of the feature. A transcoder
    (`options.writes`) is spliced in where it writes.

    Args:
      data: the data whose examples are used.
      model: a language model: its output is logits.
      address: the address that the dictionary reads.
      dictionary: the dictionary.
      batches: the text of the data.
      options: `loss_examples` is the number of examples of each unit and group.

    Returns:
      The data with `loss_effects` in the two groups, and `loss_effect`.

    Raises:
      UserError: the text cannot be read again or is another one, or the dictionary does not fit the value.
    """
    groups, effect = [], None
    units = jnp.asarray(data.units, jnp.int32)
    for group in data.examples:
        if group.label not in ("top", "uniform"):
            groups.append(group)
            continue
        run = _examples(group.windows, options.loss_examples, batches)
        args = (run.tokens, run.keep, units[run.row[:, 0]])
        found = _in_pieces(_loss_changes, (model, dictionary), args, _AT_ONCE, (address, options.writes))
        windows = _into_windows(group.windows, run, found)
        groups.append(dataclasses.replace(group, loss_effects=windows))
        if group.label == "uniform":
            effect = _mean_next(run, found, len(units))
    return dataclasses.replace(data, examples=tuple(groups), loss_effect=effect)


def _loss_changes(
    trees: tuple[Model, Dictionary], args: tuple[Array, Array, Array], addresses: tuple[str, str | None]
) -> Float[Array, " pos"]:
    """The change of -log p of each token of one sequence. 0 for the first token, and where not kept."""
    (model, dictionary), (tokens, keep, unit) = trees, args
    reads, writes = addresses
    if writes is None:
        clean = edit(model, at(reads, Splice(dictionary, error=True)))
    else:
        transcoder: Any = [dictionary]  # another kind of dictionary is refused
        errors = measure_errors(model, reads, writes, transcoder)(tokens[None])
        clean = replacement(model, reads, writes, transcoder, errors=errors)
    ablated = edit(clean, at(f"{reads}.latents", Zero(), feature=unit))

    def losses(model: Model) -> Float[Array, " pos"]:
        log_p = jax.nn.log_softmax(model(tokens[None])[0].astype(jnp.float32), axis=-1)
        return -jnp.take_along_axis(log_p[:-1], tokens[1:, None], axis=-1)[:, 0]

    change = jnp.pad(losses(ablated) - losses(clean), (1, 0))
    return jnp.where(keep, change, 0.0)


def _mean_next(run: _Run, changes: Float[np.ndarray, "example pos"], units: int) -> Float[np.ndarray, " unit"]:
    """The mean change at the token after each example. NaN for a unit without such a token."""
    after = run.place + 1
    there = after < run.keep.shape[1]
    rows = np.flatnonzero(there)
    rows = rows[run.keep[rows, after[rows]]]
    total, count = np.zeros(units), np.zeros(units)
    np.add.at(total, run.row[rows, 0], changes[rows, after[rows]])
    np.add.at(count, run.row[rows, 0], 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def with_token_effects(
    data: FeatureData, scores: ScoreFunction, model: Model, batches: Batches, options: PageOptions
) -> FeatureData:
    """Measure the effect on a unit of ablating each token before it, on its first top examples.

    A token is ablated by setting its embedding to 0; its position stays. The effect is the change of the unit's score
    at the position of the example.

    Args:
      data: the data whose examples are used.
      scores: the score function, with the units of `data`.
      model: a model with the address "embed".
      batches: the text of the data.
      options: `token_examples` is the number of examples of each unit.

    Returns:
      The data with `token_effects` in the group "top".

    Raises:
      UserError: the text cannot be read again or is another one.
    """
    scores = jax.tree_util.Partial(scores) if jax.tree_util.all_leaves([scores]) else scores
    group = data.examples[0]
    run = _examples(group.windows, options.token_examples, batches)
    args = (run.tokens, run.place, run.row[:, 0].astype(np.int32))
    at_once = max(1, _AT_ONCE // (options.before + 2))
    found = _in_pieces(_score_changes, (model, scores), args, at_once, options.before)
    changes = np.zeros_like(run.tokens, np.float32)
    columns = run.place[:, None] + np.arange(-options.before, 1)[None]
    rows, inside = np.nonzero(columns >= 0)
    changes[rows, columns[rows, inside]] = found[rows, inside]
    measured = dataclasses.replace(group, token_effects=_into_windows(group.windows, run, changes))
    return dataclasses.replace(data, examples=(measured, *data.examples[1:]))


def _score_changes(
    trees: tuple[Model, ScoreFunction], args: tuple[Array, Array, Array], before: int
) -> Float[Array, " window"]:
    """The change of the score of one example when each of the tokens up to it is ablated."""
    (model, scores), (tokens, place, unit) = trees, args

    def score(model: Model) -> Float[Array, ""]:
        given = scores(model, tokens[None])
        values = given.values if isinstance(given, Scores) else given
        return values[place, unit].astype(jnp.float32)

    ablated = lambda pos: score(edit(model, at(EMBEDDING, Zero(), pos=pos)))
    return jax.vmap(ablated)(jnp.maximum(place + jnp.arange(-before, 1), 0)) - score(model)


def _in_pieces(
    one: Callable[..., Array], trees: PyTree, args: tuple[Any, ...], at_once: int, static: Any
) -> np.ndarray:
    """`one` for every example: `at_once` of them in one run of a program that is compiled once."""
    if not len(args[0]):
        return np.zeros(args[0].shape, np.float32)
    several = jax.jit(automatic(lambda trees, *args: jax.vmap(lambda *one_of: one(trees, one_of, static))(*args)))
    return in_pieces(partial(several, trees), args, at_once)


def _examples(windows: Windows, n: int, batches: Batches) -> _Run:
    """The first `n` examples of each unit with their sequences."""
    assert windows.place is not None
    places = windows.place[:, :n]
    row = np.argwhere(places[..., 0] >= 0)
    sequence, place = places[row[:, 0], row[:, 1]].T
    tokens, keep = _sequences(batches, np.unique(sequence))
    index = np.searchsorted(np.unique(sequence), sequence)
    run = _Run(row, tokens[index], keep[index], place)
    at_peak = windows.tokens[row[:, 0], row[:, 1], windows.before]
    if not np.array_equal(run.tokens[np.arange(len(row)), place], at_peak):
        raise UserError("the batches give another text when they are read again: effects need the same batches twice")
    return run


def _sequences(
    batches: Batches, wanted: Int[np.ndarray, " sequence"]
) -> tuple[Int[np.ndarray, "sequence pos"], Bool[np.ndarray, "sequence pos"]]:
    """Some sequences of a text. Shorter ones are padded at the end."""
    tokens, keep, first = [], [], 0
    for some, kept in batches:
        inside = wanted[(wanted >= first) & (wanted < first + len(some))] - first
        tokens += list(np.asarray(some)[inside])
        keep += list(np.asarray(kept)[inside])
        first += len(some)
        if len(tokens) == len(wanted):
            break
    if len(tokens) < len(wanted):
        raise UserError(READ_AGAIN)
    length = max((len(one) for one in tokens), default=1)
    fill = lambda rows, dtype: np.asarray([np.pad(one, (0, length - len(one))) for one in rows], dtype).reshape(
        -1, length
    )
    return fill(tokens, np.int32), fill(keep, bool)


def _into_windows(
    windows: Windows, run: _Run, values: Float[np.ndarray, "example pos"]
) -> Float[np.ndarray, "unit k window"]:
    """Values of positions, cut like the windows of the examples. NaN for other examples, and 0 in blanks."""
    assert windows.place is not None
    width = windows.tokens.shape[2]
    columns = run.place[:, None] + np.arange(-windows.before, width - windows.before)[None]
    inside = (columns >= 0) & (columns < values.shape[1])
    cut = np.take_along_axis(values, np.clip(columns, 0, values.shape[1] - 1), axis=1)
    found = np.full(windows.tokens.shape, np.nan, np.float32)
    found[run.row[:, 0], run.row[:, 1]] = np.where(inside, cut, 0.0)
    blank = windows.place[..., 0] < 0
    found[blank] = 0.0
    found[~np.isnan(found) & (windows.tokens < 0)] = 0.0
    return found
