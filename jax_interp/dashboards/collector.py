"""One pass over a text that collects what some units fire on.

A unit is anything with a score at every position: a latent of a dictionary, a component of a matrix, a neuron, a probe.
A function gives the scores, statistics say what to keep of them:

    neurons = lambda model, tokens: harvest(model, "blocks.1.mlp.post", tokens)[:, :8]       # [row, unit]
    found = collect(neurons, model, batches, {"windows": TopWindows(k=10), "tokens": InputTokens(vocab)})
    found["windows"].tokens                   around the ten highest scores of each unit, [unit, k, window]
    found["tokens"].standing_out(5).tokens    the tokens that stand out where it fires, [unit, 5]

Scores and statistics are one compiled program for all batches of one shape. The device holds the scores of one batch,
and the statistics, whose size does not depend on the length of the text.
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
    """What a score function returns where there is more to say than one number for each unit and position.

    Args:
      values: the scores, by which windows are ranked.
      activations: a second value, which windows also show; where scores are equal the larger |activation| comes first.
      logits: the model's output, which the statistics of predicted tokens need.
    """

    values: Float[Array, "row unit"]
    activations: Float[Array, "row unit"] | None = None
    logits: Float[Array, "seq pos vocab"] | None = None


ScoreFunction: TypeAlias = Callable[[Any, Int[Array, "seq pos"]], "Float[Array, 'row unit'] | Scores"]
"""`scores(model, tokens)`, with `row = seq · pos`. A callable pytree is an argument of the compiled program: another
dictionary of the same shape compiles nothing. A plain function is compiled as it is."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoredBatch:
    """One batch as the statistics see it. Scores and activations are in float32, and 0 where `keep` is False."""

    tokens: Int[Array, "seq pos"]
    keep: Bool[Array, "seq pos"]
    scores: Float[Array, "unit seq pos"]
    activations: Float[Array, "unit seq pos"] | None
    logits: Float[Array, "seq pos vocab"] | None


State = TypeVar("State", bound=PyTree)
Result = TypeVar("Result", covariant=True)


class Statistic(Protocol, Generic[State, Result]):
    """What to keep of the scores: a registered dataclass whose sizes are static and whose numbers are data."""

    def of(self, batch: ScoredBatch) -> State:
        """The statistic of one batch: arrays whose shapes do not depend on the batch's. Traced."""
        ...

    def merge(self, first: State, second: State) -> State:
        """The statistic of two parts of a text, of which `first` comes first. Traced."""
        ...

    def result(self, state: State) -> Result:
        """What the user gets, from the state as NumPy arrays."""
        ...


def collect(
    scores: ScoreFunction, model: PyTree, batches: Batches, statistics: Mapping[str, Statistic[Any, Any]]
) -> dict[str, Any]:
    """Go through a text once and return statistics of the scores.

    Args:
      scores: the score function.
      model: the first argument of `scores`.
      batches: pairs `(tokens, keep)`; they are read one at a time.
      statistics: what to keep, by names of your choice: `TopWindows`, `InputTokens`, `PredictedTokens`, `OnToken`,
        `Passages`, or a `Statistic` of your own.

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
        raise UserError("there are no batches: what a unit fires on is found on a text")
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
