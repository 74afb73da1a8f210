"""`collect`: one pass over a text that collects what units fire on.

A unit is anything with a score at every position: a latent of a dictionary, a component of a matrix, a neuron, a probe.
A score function computes the scores, and statistics define what is kept:

    neurons = lambda model, tokens: harvest(model, "blocks.1.mlp.post", tokens)[:, :8]       # [row, unit]
    found = collect(neurons, model, batches, {"windows": TopWindows(k=10), "tokens": InputTokens(vocab)})
    found["windows"].tokens                   the ten highest scores of each unit with context, [unit, k, window]
    found["tokens"].standing_out(5).tokens    the tokens that stand out where a unit fires, [unit, 5]

Scores and statistics are one compiled program for all batches of one shape. The device holds the scores of one batch
and the statistics. The size of the statistics does not depend on the length of the text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jax_interp.core.errors import UserError
from jax_interp.data.harvest import TokenBatch

Batches: TypeAlias = Iterable[TokenBatch]
"""Pairs `(tokens, keep)`: positions where `keep` is False (padding, special tokens) do not count."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """The result of a score function that returns more than the scores.

    Args:
      values: the scores. Windows are ranked by them.
      activations: a second value, which windows also show. Among equal scores, the larger |activation| comes first.
      logits: the model's output. `PredictedTokens` needs it.
    """

    values: Float[Array, "row unit"]
    activations: Float[Array, "row unit"] | None = None
    logits: Float[Array, "seq pos vocab"] | None = None


ScoreFunction: TypeAlias = Callable[[Any, Int[Array, "seq pos"]], "Float[Array, 'row unit'] | Scores"]
"""`scores(model, tokens)`, with `row = seq · pos`. A callable pytree is an argument of the compiled program, so another
dictionary of the same shape does not compile again. A plain function is part of the program."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoredBatch:
    """One batch with its scores, the input of statistics. Scores and activations are float32, and 0 where not kept."""

    tokens: Int[Array, "seq pos"]
    keep: Bool[Array, "seq pos"]
    scores: Float[Array, "unit seq pos"]
    activations: Float[Array, "unit seq pos"] | None
    logits: Float[Array, "seq pos vocab"] | None


State = TypeVar("State", bound=PyTree)
Result = TypeVar("Result", covariant=True)


class Statistic(Protocol, Generic[State, Result]):
    """A statistic of the scores: a dataclass and pytree. Fields that set shapes are static, others are data."""

    def of(self, batch: ScoredBatch) -> State:
        """Compute the statistic of one batch. The shapes of the result must not depend on the batch size. Traced."""
        ...

    def merge(self, first: State, second: State) -> State:
        """Merge the statistics of two parts of a text. `first` comes before `second` in the text. Traced."""
        ...

    def result(self, state: State) -> Result:
        """Convert the final state, as NumPy arrays, into the result for the user."""
        ...


def collect(
    scores: ScoreFunction, model: PyTree, batches: Batches, statistics: Mapping[str, Statistic[Any, Any]]
) -> dict[str, Any]:
    """Read a text once and return statistics of the scores.

    Args:
      scores: the score function.
      model: the first argument of `scores`.
      batches: pairs `(tokens, keep)`; they are read one at a time.
      statistics: the statistics to compute, under names of your choice: `TopWindows`, `InputTokens`, `PredictedTokens`,
        `OnToken`, `Passages`, or a `Statistic` of your own.

    Returns:
      The result of each statistic, under its name.

    Raises:
      UserError: there is no batch.
    """
    if jax.tree_util.all_leaves([scores]):  # a plain function
        scores = jax.tree_util.Partial(scores)
    statistics = dict(statistics)
    total: dict[str, Any] | None = None
    for tokens, keep in batches:
        part = _of_batch(scores, model, jnp.asarray(tokens, jnp.int32), jnp.asarray(keep), statistics)
        total = part if total is None else _merged(statistics, total, part)
    if total is None:
        raise UserError("there are no batches: give at least one (tokens, keep)")
    states = jax.device_get(total)
    return {name: statistic.result(states[name]) for name, statistic in statistics.items()}


@jax.jit
def _of_batch(
    scores: ScoreFunction,
    model: PyTree,
    tokens: Int[Array, "seq pos"],
    keep: Bool[Array, "seq pos"],
    statistics: dict[str, Statistic[Any, Any]],
) -> dict[str, PyTree]:
    given = scores(model, tokens)
    given = given if isinstance(given, Scores) else Scores(given)

    def by_unit(values: Float[Array, "row unit"]) -> Float[Array, "unit seq pos"]:
        values = values.astype(jnp.float32).T.reshape(values.shape[1], *tokens.shape)
        return jnp.where(keep[None], values, 0.0)

    activations = None if given.activations is None else by_unit(given.activations)
    batch = ScoredBatch(tokens, keep, by_unit(given.values), activations, given.logits)
    return {name: statistic.of(batch) for name, statistic in statistics.items()}


@jax.jit
def _merged(
    statistics: dict[str, Statistic[Any, Any]], first: dict[str, PyTree], second: dict[str, PyTree]
) -> dict[str, PyTree]:
    return {name: statistic.merge(first[name], second[name]) for name, statistic in statistics.items()}
