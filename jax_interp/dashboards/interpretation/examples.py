"""The examples of each unit: for the explanation, and for the scores. They do not overlap.

SAEBench's protocol: 12 top windows and 7 windows drawn by activation, of ±10 tokens. 10 and 5 of them go into the
explanation; the other 2 and 2 are scored, beside 10 windows around random positions. A token is active above 1 % of the
unit's largest activation.

Two things differ from SAEBench's code. It takes for granted that the unit is off in random windows, and counts them as
such; here every window is labelled by its activations. And at most one window of each kind is taken from a sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dashboards.collector import Batches, ScoreFunction, collect
from jax_interp.dashboards.interpretation.drawn_windows import DrawnWindows
from jax_interp.dashboards.interpretation.judge import Shown
from jax_interp.dashboards.statistics import TopWindows
from jax_interp.dashboards.windows import Windows

Scorer = Literal["detection", "fuzzing", "simulation"]
Strings = Callable[[np.ndarray], Sequence[str]]
"""The texts of tokens: `tokenizer.texts`."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How many examples there are of each kind, and what is asked. The defaults are SAEBench's."""

    top_explain: int = 10
    top_score: int = 2
    weighted_explain: int = 5
    weighted_score: int = 2
    random_score: int = 10
    before: int = 10
    """Tokens before the position of a window."""
    after: int = 10
    """Tokens after the position."""
    threshold: float = 0.01
    """A token is active if its activation is above this fraction of the unit's largest activation."""
    scorers: tuple[Scorer, ...] = ("detection",)
    """Which scores to compute. Each unit costs one request for the explanation, one for detection, two for fuzzing, and
    one for each scored example for simulation."""
    malformed: Literal["error", "abstain"] = "error"
    """What happens at an answer that cannot be read. "abstain": the unit gets no score, and the report counts it."""
    latents: int = 1000
    """The number of latents that `interpret_dictionary` draws."""
    fewest: int = 15
    """Only latents that are on at more positions are drawn."""
    seed: int = 0
    """The seed of the latents, of the windows and of their order."""

    def __post_init__(self) -> None:
        counts = (self.top_explain, self.top_score, self.weighted_explain, self.weighted_score, self.random_score)
        if (
            min(*counts, self.before, self.after) < 0
            or self.top_explain < 1
            or self.top_score + self.weighted_score < 1
        ):
            raise UserError(f"{counts} examples: give at least one to explain and one active one to score")
        if not 0 <= self.threshold < 1:
            raise UserError(f"threshold={self.threshold} is a fraction of the largest activation: from 0 to below 1")
        if unknown := set(self.scorers) - {"detection", "fuzzing", "simulation"}:
            raise UserError(f"no scorers {sorted(unknown)}: there are detection, fuzzing and simulation")
        if self.malformed not in ("error", "abstain"):
            raise UserError(f"malformed={self.malformed!r}: give 'error' or 'abstain'")


SAEBENCH = Protocol()
"""SAEBench's protocol."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One window with the activations of a unit.

    Args:
      tokens: the texts of its tokens.
      activations: the activation at each token.
      active: which tokens are active: above the threshold of the protocol.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    active: tuple[bool, ...]

    @property
    def is_active(self) -> bool:
        """Whether the unit is active at one of the tokens."""
        return any(self.active)

    def shown(self, marked: Sequence[bool] | None = None) -> Shown:
        """The example for the judge, with these tokens marked."""
        return Shown(self.tokens, None if marked is None else tuple(marked))


@dataclasses.dataclass(frozen=True)
class UnitExamples:
    """The examples of one unit.

    Args:
      unit: the index of the unit.
      explain: the examples of the explanation, from the strongest activation to the weakest.
      score: the examples of the scores, in random order.
      largest: the largest activation of the unit.
    """

    unit: int
    explain: tuple[Example, ...]
    score: tuple[Example, ...]
    largest: float


def gather_examples(
    scores: ScoreFunction, model: Any, batches: Batches, strings: Strings, protocol: Protocol, units: Sequence[int]
) -> tuple[list[UnitExamples], dict[int, str]]:
    """Read a text once, and choose the examples of every unit.

    Args:
      scores: the score function: one column for each of `units`.
      model: the first argument of `scores`.
      batches: pairs `(tokens, keep)`.
      strings: the texts of tokens.
      protocol: how many examples of each kind.
      units: the indices of the units, for the report.

    Returns:
      The examples, and for each unit without examples the reason: it has too few windows in which it is on.

    Raises:
      UserError: there is no batch, or `units` has another length than the score function.
    """
    before, after = protocol.before, protocol.after
    top, weighted = protocol.top_explain + protocol.top_score, protocol.weighted_explain + protocol.weighted_score
    keys = jax.random.split(jax.random.key(protocol.seed))
    statistics = {
        "top": TopWindows(top, before, after, one_per_sequence=True),
        # more than needed, because some may be top windows too
        "weighted": DrawnWindows(keys[0], weighted + top, before, after, by_score=True),
        "random": DrawnWindows(keys[1], protocol.random_score + top + weighted, before, after),
    }
    found: dict[str, Windows] = collect(scores, model, batches, statistics)
    if len(found["top"].peak) != len(units):
        raise UserError(f"the score function scores {len(found['top'].peak)} units, for {len(units)} in `units`")
    rng = np.random.default_rng(protocol.seed)
    results, skipped = [], {}
    for i, unit in enumerate(units):
        one = _of_unit(int(unit), {name: _windows(w, i) for name, w in found.items()}, strings, protocol, rng)
        if isinstance(one, str):
            skipped[int(unit)] = one
        else:
            results.append(one)
    return results, skipped


@dataclasses.dataclass(frozen=True)
class _Window:
    tokens: tuple[int, ...]
    activations: tuple[float, ...]
    place: tuple[int, int] | None

    def overlaps(self, other: _Window, reach: int) -> bool:
        """Whether the two have the same text, or lie closer than `reach` in one sequence."""
        if self.place and other.place and self.place[0] == other.place[0]:
            return abs(self.place[1] - other.place[1]) < reach
        return self.tokens == other.tokens


def _windows(windows: Windows, unit: int) -> list[_Window]:
    """The windows of one unit that are not blank."""
    found = []
    for k in range(windows.tokens.shape[1]):
        there = windows.tokens[unit, k] >= 0
        if there.any():
            place = None if windows.place is None else tuple(windows.place[unit, k].tolist())
            tokens, values = windows.tokens[unit, k][there], windows.scores[unit, k][there]
            if not np.isfinite(values).all():
                raise UserError("some activations of the shown windows are NaN or infinite")
            found.append(_Window(tuple(tokens.tolist()), tuple(values.tolist()), place))
    return found


def _of_unit(
    unit: int, found: Mapping[str, list[_Window]], strings: Strings, protocol: Protocol, rng: np.random.Generator
) -> UnitExamples | str:
    """The examples of a unit, or why there are none. Of overlapping windows only the first is used."""
    reach = protocol.before + protocol.after + 1
    used: list[_Window] = []
    chosen: dict[str, list[_Window]] = {}
    wanted = {
        "top": protocol.top_explain + protocol.top_score,
        "weighted": protocol.weighted_explain + protocol.weighted_score,
        "random": protocol.random_score,
    }
    for name, count in wanted.items():
        chosen[name] = []
        for window in found[name]:
            if len(chosen[name]) < count and not any(window.overlaps(other, reach) for other in used):
                chosen[name].append(window)
                used.append(window)
        if len(chosen[name]) < count:
            state = "in the text" if name == "random" else "in which it is on"
            return f"{len(chosen[name])} of {count} separate {name} windows {state}"
    largest = max(max(window.activations) for window in chosen["top"])
    if not largest > 0:
        return "its largest activation is not above 0"
    example = lambda window: _example(window, strings, protocol.threshold * largest)
    explain, score = [], [example(window) for window in chosen["random"]]
    for name, n in (("top", protocol.top_explain), ("weighted", protocol.weighted_explain)):
        order = rng.permutation(len(chosen[name]))
        explain += [example(chosen[name][j]) for j in order[:n]]
        score += [example(chosen[name][j]) for j in order[n:]]
    explain.sort(key=lambda one: -max(one.activations))
    return UnitExamples(unit, tuple(explain), tuple(score[j] for j in rng.permutation(len(score))), largest)


def _example(window: _Window, strings: Strings, threshold: float) -> Example:
    tokens = tuple(strings(np.asarray(window.tokens, np.int32)))
    if len(tokens) != len(window.tokens):
        raise UserError(f"`strings` gave {len(tokens)} texts for {len(window.tokens)} tokens")
    return Example(tokens, window.activations, tuple(value > threshold for value in window.activations))
