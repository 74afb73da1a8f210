"""Features through a sequence: known births and deaths, measures by their definitions on the raw activations."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation import controls
from jax_interp.dictionaries.evaluation.evolution import (
    co_activation,
    evolve,
    evolve_activations,
    evolve_directions,
    match_scores,
    relative_bound,
)

RNG = np.random.default_rng(0)
# which of nine features exist in each of four members: 0 to 3 always, 4 and 5 die, 6 and 7 are born, 8 comes and goes
ALIVE = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 5, 6], [0, 1, 2, 3, 6, 8], [0, 1, 2, 3, 6, 7]]
ANGLE = 0.2


def known_sequence(d=40):
    """(directions of each member, their features): each step turns every feature by ANGLE, in a plane of its own."""
    basis = np.linalg.qr(RNG.normal(size=(d, 18)))[0].T
    members, names = [], []
    for t, alive in enumerate(ALIVE):
        order = RNG.permutation(alive)
        members.append(np.cos(ANGLE * t) * basis[order] + np.sin(ANGLE * t) * basis[9 + order])
        names.append(order)
    return [jnp.asarray(one, jnp.float32) for one in members], names


def lineages_by_name(evolution, names):
    return {(names[one.born][one.features[0]], one.born): len(one.features) for one in evolution.lineages}


WANTED = {**{(i, 0): 4 for i in range(4)}, (4, 0): 1, (5, 0): 2, (6, 1): 3, (8, 2): 1, (7, 3): 1}


@pytest.mark.parametrize("assignment", ["hungarian", "mutual"])
def test_known_births_and_deaths_by_direction(assignment):
    members, names = known_sequence()
    found = evolve_directions(members, assignment=assignment)
    assert lineages_by_name(found, names) == WANTED
    for t, step in enumerate(found.steps):
        assert set(names[t][step.deaths]) == set(ALIVE[t]) - set(ALIVE[t + 1])
        assert set(names[t + 1][step.births]) == set(ALIVE[t + 1]) - set(ALIVE[t])
        np.testing.assert_allclose(step.scores, np.cos(ANGLE), atol=1e-5)
        assert step.passed.value == pytest.approx(len(set(ALIVE[t]) & set(ALIVE[t + 1])) / 6)
        assert step.passed.low < step.passed.value < step.passed.high
        assert step.chance.value == 0
    assert found.persistence() == pytest.approx([1, 5 / 6, 4 / 6, 4 / 6])
    for one in found.lineages:  # a turn by ANGLE in each step
        np.testing.assert_allclose(one.drift, np.cos(ANGLE * np.arange(len(one.features))), atol=1e-5)


def test_known_births_and_deaths_by_activation():
    """Layers whose directions have nothing in common: each reads the same features from another rotation."""
    strengths = RNG.exponential(size=(600, 9)) * (RNG.random((600, 9)) < 0.15)
    members, rows, names = [], [], []
    for alive in ALIVE:
        order = RNG.permutation(alive)
        W = jnp.asarray(np.linalg.qr(RNG.normal(size=(12, 6)))[0].T, jnp.float32)
        members.append(controls.oracle(W, jnp.zeros(12), 1e-4))
        rows.append(jnp.asarray(strengths[:, order], jnp.float32) @ W)
        names.append(order)
    batches = [[one[i : i + 200] for one in rows] for i in (0, 200, 400)]
    found = evolve_activations(members, batches)
    assert lineages_by_name(found, names) == WANTED
    assert all(step.chance.value == 0 and (step.scores > 0.999).all() for step in found.steps)


def test_by_chance_random_directions_pass_where_the_threshold_is_low():
    members = [jax.random.normal(jax.random.key(i), (60, 5)) for i in range(2)]
    (step,) = evolve_directions(members, threshold=0.6, reseeds=5).steps
    assert step.chance.low < step.passed.value + 0.15
    assert step.chance.value == pytest.approx(step.passed.value, abs=0.15)
    assert step.chance.value > 0.5


def test_measures_are_their_definitions():
    a, b = (RNG.exponential(size=(90, n)) * (RNG.random((90, n)) < 0.4) for n in (4, 5))
    b[:, 1], b[:, 2], a[:, 3] = 2 * a[:, 0], 0, 1.5  # the same, dead, and constant
    coder = lambda n: controls.Basis(jnp.eye(n), jnp.zeros(n))
    rows = [tuple(jnp.asarray(x[i : i + 30], jnp.float32) for x in (a, b)) for i in (0, 30, 60)]
    found = co_activation(coder(4), coder(5), rows, bound=(jnp.full(4, 0.3), jnp.full(5, 0.3)))
    A, B = a > 0.3, b > 0.3
    for i, j in itertools.product(range(4), range(5)):
        x, y, p, q = a[:, i], b[:, j], A[:, i], B[:, j]
        constant = x.std() == 0 or y.std() == 0
        assert found.pearson()[i, j] == pytest.approx(0 if constant else np.corrcoef(x, y)[0, 1], abs=1e-5)
        dead = not y.any()
        cosine = 0 if dead else x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        assert found.cosine()[i, j] == pytest.approx(cosine, abs=1e-6)
        both = (p & q).sum()
        assert found.sufficiency()[i, j] == pytest.approx(both / p.sum())
        assert found.necessity()[i, j] == pytest.approx(0 if dead else both / q.sum())
        assert found.jaccard()[i, j] == pytest.approx(both / (p | q).sum())
        cells = [((p == u) & (q == v)).mean() * np.log(((p == u) & (q == v)).mean() / (p == u).mean() / (q == v).mean())
                 for u in (0, 1) for v in (0, 1) if ((p == u) & (q == v)).any()]  # fmt: skip
        assert found.mutual_information()[i, j] == pytest.approx(sum(cells), abs=1e-12)
    assert found.pearson()[0, 1] == pytest.approx(1)
    np.testing.assert_allclose(relative_bound(coder(4), [x for x, _ in rows]), 0.2 * a.max(0), rtol=1e-6)


def test_an_assignment_prefers_matches_to_sums():
    """Two matches of .7 rather than one of 1.0 beside a pair that does not count."""
    scores = np.array([[1.0, 0.7], [0.7, 0.1]])
    np.testing.assert_array_equal(match_scores(scores, 0.6), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(match_scores(scores, 0.6, "mutual"), [[0, 0]])
    np.testing.assert_array_equal(match_scores(-scores, -0.75), [[0, 1], [1, 0]])
    assert match_scores(scores, 1.1).shape == (0, 2)
    assert match_scores(np.zeros((0, 3)), 0.5).shape == (0, 2)


def test_what_does_not_fit_is_refused():
    sae = controls.neurons(3, 2)
    x = jnp.ones((4, 3))
    for call, message in (
        (lambda: evolve([], 0.5), "two members"),
        (lambda: evolve([np.ones((2, 3)), np.ones((2, 3))], 0.5), "shapes"),
        (lambda: match_scores(np.full((2, 2), np.nan), 0.5), "NaN"),
        (lambda: evolve_directions([jnp.ones((2, 3))]), "two or more"),
        (lambda: evolve_directions([jnp.ones((2, 3)), jnp.ones((2, 4))]), "of one width"),
        (lambda: evolve_activations([sae, sae], [[x]]), "every batch"),
        (lambda: co_activation(sae, sae, []), "no rows"),
        (lambda: co_activation(sae, sae, [(x, x[:2])]), "the same tokens"),
        (lambda: co_activation(sae, sae, [(x * jnp.nan, x)]), "NaN"),
    ):
        with pytest.raises(UserError, match=message):
            call()
