"""Directions from labelled texts: closed forms on each text by itself, probes, planted directions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.probes import All, Last, Span
from jax_interp.steering import Questions
from jax_interp.steering.finding import (
    LAT,
    CentredPCA,
    LogisticDirection,
    MeanDifference,
    PairedPCA,
    find_directions,
    pairs_of_questions,
)
from jax_interp.surgery import values_at
from tests.small_models import GPT2_LIKE, peaky

SITES = "blocks.*.resid_post"
A, B, OPEN, CLOSE = 5, 6, 7, 8
METHODS = (MeanDifference(), PairedPCA(), CentredPCA(), LogisticDirection(), LAT())


def questions(n: int = 12, swapped: bool = True) -> Questions:
    """Prompts of 3 to 6 tokens, answered by "(A)" or "(B)"."""
    rng = np.random.default_rng(0)
    prompts = tuple(tuple(rng.integers(9, 40, rng.integers(3, 7)).tolist()) for _ in range(n))
    letters = [(A, B) if i % 2 or not swapped else (B, A) for i in range(n)]
    answer = lambda side: tuple((OPEN, pair[side], CLOSE) for pair in letters)
    return Questions("letters", prompts, answer(0), answer(1), {"letter": tuple("AB"[p[0] == B] for p in letters)})


@pytest.fixture(scope="module")
def model():
    return peaky(GPT2_LIKE)


@pytest.fixture(scope="module")
def data():
    return pairs_of_questions(questions())


@pytest.fixture(scope="module")
def found(model, data):
    return find_directions(model, data, METHODS, rules=(Span("choice"), Last(), All()), batch=7)


@pytest.fixture(scope="module")
def alone(model, data):
    """The residual stream of each text by itself, without padding, in the order of the examples."""
    every = []
    for row, real in zip(data.tokens, data.mask, strict=True):
        values = values_at(model, SITES)(jnp.asarray(row[real])[None])[SITES]
        every.append(np.asarray(values[:, 0], np.float64))
    return every


def test_pairs_hold_the_questions(data):
    asked = questions()
    assert len(data) == 2 * len(asked)
    assert data.classes[1] == "matching"
    for number, (first, second) in enumerate(data.pairs):
        for row, answer in ((first, asked.matching[number]), (second, asked.other[number])):
            assert tuple(data.tokens[row][data.mask[row]]) == asked.prompts[number] + answer
            assert data.tokens[row][data.spans["choice"][row]].tolist() == [answer[1]]
        assert (data.labels[first], data.labels[second]) == (1, 0)
    assert data.columns["letter"] == asked.factors["letter"] * 2


def test_the_mean_difference_is_that_of_each_text_by_itself(data, found, alone):
    n = len(data) // 2
    for rule, chosen in (("choice", -2), ("last", -1), ("all", slice(None))):
        rows = [x[:, chosen] if isinstance(chosen, int) else x.mean(axis=1) for x in alone]
        wanted = np.mean(rows[:n], axis=0) - np.mean(rows[n:], axis=0)
        vector = found.vector(method="mean difference", rule=rule)
        for layer, (site, v) in enumerate(vector.vectors.items()):
            assert site == f"blocks.{layer}.resid_post"
            np.testing.assert_allclose(v, wanted[layer], atol=2e-5)
    norms = [np.linalg.norm(x[:, -2], axis=-1) for x in alone]
    np.testing.assert_allclose(found.norms[:, 0], np.mean(norms, axis=0), rtol=1e-5)
    length = np.linalg.norm(found.vectors[:, 0, 0], axis=-1)
    np.testing.assert_allclose(found.relative_norms.sel(rule=0, method=0), length / found.norms[:, 0], rtol=1e-5)
