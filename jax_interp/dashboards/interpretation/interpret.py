"""The protocol: a judge explains each unit from its examples, and scorers ask how well the explanation predicts it.

detection    in which of the scored examples is the unit on somewhere? The fraction of right answers (SAEBench)
fuzzing      in which of the active examples are the right tokens marked? Each example is asked twice, in two
             requests: with the right marks, and with as many marks on other tokens (Paulo et al. 2024)
simulation   how strongly is the unit on at each token? The correlation with its activations, over all scored
             examples (Bills et al. 2023). A constant prediction has the score 0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.dashboards.collector import Batches, ScoreFunction
from jax_interp.dashboards.features import Latents
from jax_interp.dashboards.interpretation.examples import (
    SAEBENCH,
    Example,
    Protocol,
    Strings,
    UnitExamples,
    gather_examples,
)
from jax_interp.dashboards.interpretation.figures import ScorerFigures, mean_of_units, summarise
from jax_interp.dashboards.interpretation.judge import Judge, Request, Shown
from jax_interp.dashboards.interpretation.requests import (
    MalformedAnswerError,
    detection_request,
    explanation_request,
    fuzzing_request,
    read_explanation,
    read_numbers,
    read_values,
    simulation_request,
)
from jax_interp.data.harvest import Addresses, TokenBatch, harvest
from jax_interp.dictionaries.evaluation.benchmarks.baselines import Compared
from jax_interp.dictionaries.evaluation.benchmarks.measure import DICTIONARY, RANDOM, Measure
from jax_interp.surgery.contract import Model

MEANING = {
    "detection": "fraction of excerpts that the judge assigns rightly, given its explanation",
    "fuzzing": "fraction of marked excerpts that the judge assigns rightly",
    "simulation": "correlation of predicted and true activations",
}


@dataclasses.dataclass(frozen=True)
class UnitReport:
    """What a judge said of one unit.

    Args:
      unit: the index of the unit.
      explanation: the explanation; None where the judge's answer could not be read.
      scores: the score by scorer.
      truth: the right answers by scorer, for detection and fuzzing.
      answers: the judge's answers by scorer, in the order of `truth`.
      malformed: by stage, why an answer could not be read.
    """

    unit: int
    explanation: str | None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    truth: dict[str, tuple[bool, ...]] = dataclasses.field(default_factory=dict)
    answers: dict[str, tuple[bool, ...]] = dataclasses.field(default_factory=dict)
    malformed: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `interpret`.

    Args:
      units: what the judge said of each unit.
      figures: the figures over all units, by scorer.
      skipped: for each unit without examples, the reason.
    """

    units: tuple[UnitReport, ...]
    figures: dict[str, ScorerFigures]
    skipped: dict[int, str]

    @property
    def explanations(self) -> dict[int, str]:
        """The explanations by unit, for `interpret(explanations=)`."""
        return {one.unit: one.explanation for one in self.units if one.explanation is not None}

    def to_json(self) -> dict[str, Any]:
        """JSON values. Numbers that are not defined are NaN."""
        return dataclasses.asdict(self)


def interpret(
    scores: ScoreFunction,
    model: Any,
    batches: Batches,
    strings: Strings,
    judge: Judge,
    units: Sequence[int],
    protocol: Protocol = SAEBENCH,
    explanations: Mapping[int, str] | None = None,
) -> Report:
    """Explain units with a judge, and score the explanations.

    Args:
      scores: the score function: one column for each of `units`, such as `Latents(sae, jnp.array(units), address)`.
      model: the first argument of `scores`.
      batches: pairs `(tokens, keep)`. They are read once.
      strings: the texts of tokens: `tokenizer.texts`.
      judge: the judge. Wrap it in `Answers`, which keeps its answers on disk.
      units: the indices of the units, for the report.
      protocol: the examples and the scorers.
      explanations: explanations by unit, of another judge or of a person. Units without one are explained.

    Returns:
      What the judge said of each unit, and the figures. The same text, seed and answers give the same report.

    Raises:
      UserError: there is no batch, or the judge does not return one text for each request.
      MalformedAnswerError: an answer cannot be read, and the protocol does not let the judge abstain.
    """
    found, skipped = gather_examples(scores, model, batches, strings, protocol, units)
    reports = {one.unit: UnitReport(one.unit, (explanations or {}).get(one.unit)) for one in found}
    asked = [one for one in found if reports[one.unit].explanation is None]
    shown = [explanation_request([example.shown(example.active) for example in one.explain]) for one in asked]
    for one, answer in zip(asked, judge(shown) if shown else ()):
        text = _read(lambda answer=answer: read_explanation(answer), reports[one.unit], "explanation", protocol)
        reports[one.unit] = dataclasses.replace(reports[one.unit], explanation=text)
    explained = [one for one in found if reports[one.unit].explanation is not None]
    for scorer in protocol.scorers:
        _SCORERS[scorer](explained, reports, judge, protocol)
    figures = {scorer: _figures(scorer, list(reports.values()), protocol) for scorer in protocol.scorers}
    return Report(tuple(reports.values()), figures, skipped)


Read = TypeVar("Read")


def _read(read: Callable[[], Read], report: UnitReport, stage: str, protocol: Protocol) -> Read | None:
    """What `read` returns; None where the answer is malformed and the protocol lets the judge abstain."""
    try:
        return read()
    except MalformedAnswerError as error:
        if protocol.malformed == "error":
            raise MalformedAnswerError(f"unit {report.unit}, {stage}: {error}") from error
        report.malformed[stage] = str(error)
        return None


def _ask(requests: Sequence[Sequence[Request]], judge: Judge) -> list[list[str]]:
    """The answers to the requests of each unit, all asked at once."""
    flat = [request for of_unit in requests for request in of_unit]
    answers = iter(judge(flat) if flat else ())
    return [[next(answers) for _ in of_unit] for of_unit in requests]


def _detect(found: Sequence[UnitExamples], reports: dict[int, UnitReport], judge: Judge, protocol: Protocol) -> None:
    requests = [
        [detection_request(reports[one.unit].explanation or "", [e.shown() for e in one.score])] for one in found
    ]
    for one, (answer,) in zip(found, _ask(requests, judge)):
        report = reports[one.unit]
        report.truth["detection"] = tuple(example.is_active for example in one.score)
        named = _read(partial(read_numbers, answer, len(one.score)), report, "detection", protocol)
        if named is not None:
            _note(report, "detection", named)


def _note(report: UnitReport, scorer: str, answers: tuple[bool, ...]) -> None:
    report.answers[scorer] = answers
    report.scores[scorer] = float(np.mean(np.asarray(answers) == np.asarray(report.truth[scorer])))


def _fuzz(found: Sequence[UnitExamples], reports: dict[int, UnitReport], judge: Judge, protocol: Protocol) -> None:
    """Two requests for a unit. In the first, half of the examples have the right marks; in the second, the others."""
    requests, kept = [], []
    for one in found:
        rng = np.random.default_rng((protocol.seed, one.unit))
        examples = [example for example in one.score if example.is_active and not all(example.active)]
        if not examples:
            reports[one.unit].malformed["fuzzing"] = "no scored example has both active and other tokens"
            continue
        first = rng.permutation(np.arange(len(examples)) % 2 == 0)
        wrong = [_moved(example, rng) for example in examples]
        explanation = reports[one.unit].explanation or ""
        requests.append(
            [
                fuzzing_request(explanation, [e.shown(e.active) if r else w for e, w, r in zip(examples, wrong, right)])
                for right in (first, ~first)
            ]
        )
        reports[one.unit].truth["fuzzing"] = (*first.tolist(), *(~first).tolist())
        kept.append((one, len(examples)))
    for (one, count), answers in zip(kept, _ask(requests, judge)):
        report = reports[one.unit]
        parts = [_read(partial(read_numbers, answer, count), report, "fuzzing", protocol) for answer in answers]
        if all(part is not None for part in parts):
            _note(report, "fuzzing", tuple(named for part in parts if part is not None for named in part))


def _moved(example: Example, rng: np.random.Generator) -> Shown:
    """The example with as many marks on tokens that are not active; fewer, if there are fewer such tokens."""
    others = np.flatnonzero(~np.asarray(example.active))
    marks = rng.choice(others, min(sum(example.active), len(others)), replace=False)
    return example.shown(np.isin(np.arange(len(example.tokens)), marks).tolist())


def _simulate(found: Sequence[UnitExamples], reports: dict[int, UnitReport], judge: Judge, protocol: Protocol) -> None:
    requests = [
        [simulation_request(reports[one.unit].explanation or "", example.shown()) for example in one.score]
        for one in found
    ]
    for one, answers in zip(found, _ask(requests, judge)):
        report = reports[one.unit]
        read = [
            _read(partial(read_values, answer, len(example.tokens)), report, "simulation", protocol)
            for answer, example in zip(answers, one.score)
        ]
        if all(values is not None for values in read):
            predicted = np.concatenate([np.asarray(values) for values in read if values is not None])
            true = np.concatenate([np.asarray(example.activations) for example in one.score])
            spread = predicted.std() > 0 and true.std() > 0
            report.scores["simulation"] = float(np.corrcoef(predicted, true)[0, 1]) if spread else 0.0


_SCORERS = {"detection": _detect, "fuzzing": _fuzz, "simulation": _simulate}


def _figures(scorer: str, reports: Sequence[UnitReport], protocol: Protocol) -> ScorerFigures:
    scored = [one for one in reports if scorer in one.scores]
    abstained = len(reports) - len(scored)
    if scorer == "simulation":
        score = mean_of_units([one.scores[scorer] for one in scored], protocol.seed)
        return ScorerFigures(len(scored), abstained, score, 0.0, None)
    truth, answers = [one.truth[scorer] for one in scored], [one.answers[scorer] for one in scored]
    return summarise(truth, answers, abstained, protocol.seed)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The reports of a dictionary and of its controls, such as "dictionary" and "random"."""

    reports: dict[str, Report]

    def measures(self) -> list[Measure]:
        """Each figure with the figures of the controls beside it."""
        result = []
        for scorer in next(iter(self.reports.values())).figures:
            figures = {name: report.figures[scorer] for name, report in self.reports.items()}
            chance = next(iter(figures.values())).chance
            about = f"{MEANING[scorer]}; a constant answer reaches {chance:.2f}"
            result.append(Measure(scorer, about, "higher", {name: one.score for name, one in figures.items()}))
            balanced = {name: one.balanced for name, one in figures.items() if one.balanced is not None}
            if balanced:
                about = "mean of the rates of true positives and true negatives; chance is 0.5"
                result.append(Measure(f"{scorer}, balanced", about, "higher", balanced))
        return result


def interpret_dictionary(
    model: Model,
    address: Addresses,
    compared: Compared,
    batches: Sequence[TokenBatch],
    strings: Strings,
    judge: Judge,
    protocol: Protocol = SAEBENCH,
    coders: Sequence[str] = (DICTIONARY, RANDOM),
) -> Comparison:
    """Interpret random latents of a dictionary, and as many latents of its controls.

    Latents are drawn among those that are on at more than `protocol.fewest` positions.

    Args:
      model: the model that the dictionary was trained on.
      address: what the dictionary reads.
      compared: the dictionary and its baselines, from `benchmarks.baselines.compare`.
      batches: pairs `(tokens, keep)`. They are read twice for each coder.
      strings: the texts of tokens: `tokenizer.texts`.
      judge: the judge. Wrap it in `Answers`, which keeps its answers on disk.
      protocol: the examples and the scorers.
      coders: which of the compared coders. A figure without the random dictionary beside it says little: random
        dictionaries have reached .87 where a trained one reached .90 (Korznikov et al. 2026, arXiv:2602.14111).

    Raises:
      UserError: `batches` can be read only once, there is no such coder, or no latent is on often enough.
    """
    if iter(batches) is iter(batches):
        raise UserError("the batches can be read only once, and interpretation reads them twice: give a list")
    columns = {name: chosen[0] for name, chosen in compared.columns()}
    if unknown := set(coders) - set(columns):
        raise UserError(f"no coders {sorted(unknown)} are compared: there are {', '.join(columns)}")
    reports = {}
    for name in coders:
        units = _choose_units(columns[name], model, address, batches, protocol)
        coder: Any = columns[name]
        scores = Latents(coder, jnp.asarray(units, jnp.int32), address)
        reports[name] = interpret(scores, model, batches, strings, judge, units, protocol)
    return Comparison(reports)


def _choose_units(
    dictionary: Any, model: Model, address: Addresses, batches: Sequence[TokenBatch], protocol: Protocol
) -> list[int]:
    fires = sum(
        np.asarray(_fires(dictionary, model, address, jnp.asarray(tokens), jnp.asarray(keep)), np.int64)
        for tokens, keep in batches
    )
    often = np.flatnonzero(np.asarray(fires) > protocol.fewest)
    if not len(often):
        raise UserError(f"no latent is on at more than {protocol.fewest} positions: give more text")
    rng = np.random.default_rng(protocol.seed)
    return np.sort(rng.choice(often, min(protocol.latents, len(often)), replace=False)).tolist()


@partial(jax.jit, static_argnames="address")
def _fires(dictionary: Any, model: Model, address: Addresses, tokens: Array, keep: Array) -> Array:
    z = dictionary.encode(harvest(model, address, tokens))
    return jnp.sum((z > 0) & keep.reshape(-1)[:, None], axis=0, dtype=jnp.int32)
