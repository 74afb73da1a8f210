"""Automatic interpretation: a judge explains units in words, and the words are scored (SAEBench; Paulo et al. 2024).

The judge is a function that you pass: it reads requests and returns texts. The package has no client of its own.

    judge = Answers(one_by_one(ask), name="my-model", directory="runs/judge")
    found = interpret_dictionary(model, address, compare(key, sae, rows), batches, tokenizer.texts, judge)
    found.measures()                     every figure with its interval, beside that of a random dictionary

judge.py           requests, the judge, and its answers on disk
requests.py        the texts of the requests, and how answers are read
drawn_windows.py   a statistic for `collect`: windows drawn at random, uniformly or by activation
examples.py        the examples of each unit: for the explanation, and for the scores
interpret.py       the protocol: explain, then score
figures.py         scores of all units with intervals, and agreement between judges and between scorers
known_features.py  a judge that knows the true features of a synthetic world
"""

from jax_interp.dashboards.interpretation.examples import Example, Protocol, UnitExamples, gather_examples
from jax_interp.dashboards.interpretation.figures import (
    ScorerFigures,
    cohens_kappa,
    judge_agreement,
    scorer_agreement,
)
from jax_interp.dashboards.interpretation.interpret import (
    Comparison,
    Report,
    UnitReport,
    interpret,
    interpret_dictionary,
)
from jax_interp.dashboards.interpretation.judge import Answers, Judge, Request, one_by_one
from jax_interp.dashboards.interpretation.known_features import KnownFeaturesJudge
from jax_interp.dashboards.interpretation.requests import MalformedAnswerError

__all__ = [
    "Answers",
    "Comparison",
    "Example",
    "Judge",
    "KnownFeaturesJudge",
    "MalformedAnswerError",
    "Protocol",
    "Report",
    "Request",
    "ScorerFigures",
    "UnitExamples",
    "UnitReport",
    "cohens_kappa",
    "gather_examples",
    "interpret",
    "interpret_dictionary",
    "judge_agreement",
    "one_by_one",
    "scorer_agreement",
]
