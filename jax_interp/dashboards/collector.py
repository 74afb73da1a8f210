"""`collect`: one pass over a text that collects what units fire on.

A unit is anything with a score at every position: a latent of a dictionary, a component of a matrix, a neuron, a probe.
A score function computes the scores, and statistics define what is kept:

    neurons = lambda model, tokens: harvest(model, "blocks.1.mlp.post", tokens)[:, :8]       # [row, unit]
    found = collect(neurons, model, batches, {"windows": TopWindows(k=10), "tokens": InputTokens(vocab)})
    found["windows"].tokens                   the ten highest scores of each unit with context, [unit, k, window]
    found["tokens"].standing_out(5).tokens    the tokens that stand out where a unit fires, [unit, 5]

Scores and statistics are one compiled program for all batches of one shape. The device holds the scores of one batch
and the statistics. The size of the statistics does not depend on the length of the text.

A pass over days saves its state (`Reading(save_to=)`). The same call goes on from there, and ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.saved_pass import Cursor, SavedPass, saved_pass
from jax_interp.data.harvest import TokenBatch
from jax_interp.training.interrupt import Interrupted
from jax_interp.training.placement import automatic, replicated
from jax_interp.training.planning.planned import PlannedStep
from jax_interp.training.progress import progress
from jax_interp.training.sharding import Rules, shard_batch


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a text is read.

    Args:
      save_to: a directory for the state of the pass. If it has the state of an earlier call with the same arguments,
        the pass goes on from there. A signal (SIGINT, SIGTERM) saves and stops. None: nothing is saved.
      save_every: seconds between two saves.
      quiet: show no progress.
    """

    save_to: Path | str | None = None
    save_every: float = 300.0
    quiet: bool = True


READING = Reading()


Batches: TypeAlias = Iterable[TokenBatch]
"""Pairs `(tokens, keep)`: positions where `keep` is False (padding, special tokens) do not count."""


@register_dataclass
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


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoredBatch:
    """One batch with its scores, the input of statistics. Scores and activations are float32, and 0 where not kept.

    Args:
      sequences: the number of sequences before this batch.
      kept: the number of kept positions before this batch, as two words: the high one, the low one.
    """

    tokens: Int[Array, "seq pos"]
    keep: Bool[Array, "seq pos"]
    scores: Float[Array, "unit seq pos"]
    activations: Float[Array, "unit seq pos"] | None
    logits: Float[Array, "seq pos vocab"] | None
    sequences: Int[Array, ""] | int = 0
    kept: UInt32[Array, "2"] | tuple[int, int] = (0, 0)


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
    scores: ScoreFunction,
    model: PyTree,
    batches: Batches,
    statistics: Mapping[str, Statistic[Any, Any]],
    reading: Reading = READING,
) -> dict[str, Any]:
    """Read a text once and return statistics of the scores.

    Inside `jax.set_mesh(mesh)` the sequences of each batch are split over its row axes.

    Args:
      scores: the score function.
      model: the first argument of `scores`.
      batches: pairs `(tokens, keep)`; they are read one at a time. A pass that is saved must get the same ones again.
      statistics: the statistics to compute, under names of your choice: `TopWindows`, `InputTokens`, `PredictedTokens`,
        `OnToken`, `Passages`, or a `Statistic` of your own.
      reading: where the state of the pass is saved, and whether progress is shown.

    Returns:
      The result of each statistic, under its name.

    Raises:
      UserError: there is no batch, tokens or mask have the wrong type or shape, a score at a kept position is not
        finite, or `save_to` has the state of another pass.
      Interrupted: the pass was stopped by a signal, and is saved.
    """
    if jax.tree_util.all_leaves([scores]):  # a plain function
        scores = jax.tree_util.Partial(scores)
    statistics = dict(statistics)
    if reading.save_to is None:
        total = _read_on(scores, model, batches, statistics, None, reading.quiet)
    else:
        with saved_pass(reading.save_to, scores, model, statistics, reading.save_every) as saved:
            total = _read_on(scores, model, batches, statistics, saved, reading.quiet)
    states = to_host(total)
    return {name: statistic.result(states[name]) for name, statistic in statistics.items()}


def _read_on(
    scores: ScoreFunction,
    model: PyTree,
    batches: Batches,
    statistics: dict[str, Statistic[Any, Any]],
    saved: SavedPass | None,
    quiet: bool,
) -> dict[str, Any]:
    """The states of the whole text: read the batches that are not in the saved state yet."""
    total: dict[str, Any] | None = None
    cursor, wrong, began = Cursor(), None, time.monotonic()
    skipped = 0 if saved is None else saved.cursor.batches
    number = len(batches) if isinstance(batches, Sized) else None
    view = progress("collect", skipped, number, ["tokens", "tokens/s"], quiet=quiet)
    try:
        for tokens, keep in batches:
            tokens, keep = _checked(model, np.asarray(tokens), np.asarray(keep))
            before, cursor = cursor, cursor.after(tokens, keep, with_digest=saved is not None)
            if cursor.batches <= skipped:
                continue
            if saved is not None and total is None and skipped:
                total = saved.states(before, _shapes(scores, model, statistics, tokens, keep))
            _raise_if(wrong, before)  # also waits for the batch before, so that no more than two are on the device
            part, wrong = _of_batch(scores, model, *_placed(tokens, keep, before), statistics)
            total = read = part if total is None else _merged(statistics, total, part)
            view.step(cursor.batches)
            view.values(cursor.batches, {"tokens": cursor.kept, "tokens/s": _rate(cursor, saved, began)})
            due, stops = (False, False) if saved is None else saved.is_due()
            if saved is not None and due:
                _raise_if(wrong, cursor)
                saved.save(cursor, read)
                if stops:
                    signum = saved.stop.signum or signal.SIGTERM
                    raise Interrupted(cursor.batches, number or cursor.batches, signum, saved.directory)
        _raise_if(wrong, cursor)
        if not cursor.batches:
            raise UserError("there are no batches: give at least one (tokens, keep)")
        if saved is not None and total is None:  # an earlier call has read every batch
            total = saved.states(cursor, _shapes(scores, model, statistics, tokens, keep))
        assert total is not None
        if saved is not None and cursor.batches > skipped:
            saved.save(cursor, total)
    finally:
        view.close()
    return total


def _rate(cursor: Cursor, saved: SavedPass | None, began: float) -> float:
    return (cursor.kept - (saved.cursor.kept if saved else 0)) / max(time.monotonic() - began, 1e-9)


def _checked(model: PyTree, tokens: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
        raise UserError(f"tokens of shape {tokens.shape} and dtype {tokens.dtype}: give integers [seq, pos]")
    if keep.shape != tokens.shape or keep.dtype != bool:
        raise UserError(f"keep of shape {keep.shape} and dtype {keep.dtype}: give booleans of shape {tokens.shape}")
    if (check := getattr(model, "check_inputs", None)) is not None:  # as `call` does
        check(tokens)
    return tokens.astype(np.int32), keep


def _placed(tokens: np.ndarray, keep: np.ndarray, before: Cursor) -> tuple[Array, ...]:
    """One batch and where it stands in the text, on the device or on the mesh that is active."""
    kept = np.asarray([before.kept >> 32, before.kept & 0xFFFFFFFF], np.uint32)
    where = jnp.asarray(before.sequences, jnp.int32), jnp.asarray(kept)
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jnp.asarray(tokens), jnp.asarray(keep), *where
    return *shard_batch((tokens, keep), mesh), *where


def _raise_if(wrong: Array | None, reached: Cursor) -> None:
    if wrong is not None and (count := int(wrong)):
        raise UserError(
            f"{count} scores at kept positions of batch {reached.batches - 1} are NaN or infinite: the model or the "
            "units have values that are not finite; try float32"
        )


def _shapes(scores: Any, model: PyTree, statistics: dict[str, Any], tokens: np.ndarray, keep: np.ndarray) -> Any:
    return jax.eval_shape(_of_batch, scores, model, *_placed(tokens, keep, Cursor()), statistics)[0]


def _states(
    scores: ScoreFunction,
    model: PyTree,
    tokens: Int[Array, "seq pos"],
    keep: Bool[Array, "seq pos"],
    sequences: Int[Array, ""],
    kept: UInt32[Array, "2"],
    statistics: dict[str, Statistic[Any, Any]],
) -> tuple[dict[str, PyTree], Int[Array, ""]]:
    """The state of each statistic after one batch alone, and the number of scores that are not finite."""
    given = scores(model, tokens)
    given = given if isinstance(given, Scores) else Scores(given)

    def by_unit(values: Float[Array, "row unit"]) -> Float[Array, "unit seq pos"]:
        values = values.astype(jnp.float32).T.reshape(values.shape[1], *tokens.shape)
        return jnp.where(keep[None], values, 0.0)

    activations = None if given.activations is None else by_unit(given.activations)
    batch = ScoredBatch(tokens, keep, by_unit(given.values), activations, given.logits, sequences, kept)
    wrong = jnp.sum(~jnp.isfinite(batch.scores), dtype=jnp.int32)
    return {name: statistic.of(batch) for name, statistic in statistics.items()}, wrong


def planned(
    scores: tuple[ScoreFunction, Rules],
    model: tuple[PyTree, Rules],
    batch: tuple[Any, Any],
    statistics: Mapping[str, Statistic[Any, Any]],
    batches: int,
) -> PlannedStep:
    """One batch of `collect`, by shapes (`training.planning`): its scores, its statistics, and their merging.

    Args:
      scores: the score function, with shapes in place of arrays, and its sharding rules.
      model: the shapes of the model, and its sharding rules.
      batch: the shapes of tokens and mask.
      statistics: the statistics.
      batches: the number of batches of the pass.
    """
    statistics, begin, kept = dict(statistics), jnp.zeros((), jnp.int32), jnp.zeros((2,), jnp.uint32)

    def step(state: PyTree, batch: tuple[Array, Array], scores: ScoreFunction, model: PyTree) -> tuple[PyTree, Array]:
        part, wrong = _states(scores, model, batch[0], batch[1], begin, kept, statistics)
        return {name: one.merge(state[name], part[name]) for name, one in statistics.items()}, wrong

    first = lambda scores, model, batch: _states(scores, model, batch[0], batch[1], begin, kept, statistics)[0]
    state = jax.eval_shape(first, scores[0], model[0], batch)
    return PlannedStep(
        step, state, batch, (scores, model), replicated(state), lambda _: "state", batches, batch[0].size
    )


_of_batch = jax.jit(automatic(_states))


@functools.partial(jax.jit, donate_argnums=1)
@automatic
def _merged(
    statistics: dict[str, Statistic[Any, Any]], first: dict[str, PyTree], second: dict[str, PyTree]
) -> dict[str, PyTree]:
    return {name: statistic.merge(first[name], second[name]) for name, statistic in statistics.items()}
