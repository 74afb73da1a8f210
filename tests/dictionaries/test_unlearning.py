"""Unlearning in a model whose every prediction depends on one known latent."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.evaluation import controls
from jax_interp.dictionaries.evaluation.benchmarks.unlearning import (
    UnlearningConfig,
    choice_accuracy,
    choose_latents,
    frequencies,
    token_accuracy,
    unlearning,
)
from jax_interp.surgery import Site

VOCAB = 12
BOS, FORGET, RETAIN = 0, range(1, 6), range(6, 12)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Counting:
    """Token t is the direction t, and predicts t + 1. Each half of the vocabulary is a circle of its own."""

    E: jax.Array

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps)
        x = site("x", self.E[tokens])
        following = jnp.asarray([0, 2, 3, 4, 5, 1, 7, 8, 9, 10, 11, 6])
        logits = (x @ self.E.T)[..., jnp.argsort(following)]
        return site.close(site("logits", logits))


MODEL = Counting(jnp.linalg.qr(jax.random.normal(jax.random.key(0), (VOCAB, VOCAB)))[0])
EXACT = controls.oracle(MODEL.E, jnp.zeros(VOCAB), 0.5)


def batch(tokens, seed):
    """Runs of a circle after BOS, with padding at the end that is not kept."""
    tokens, rng = list(tokens), np.random.default_rng(seed)
    rows = [[BOS] + [tokens[(s + i) % len(tokens)] for i in range(7)] for s in rng.integers(len(tokens), size=8)]
    keep = np.ones((8, 8), bool)
    keep[:, 0] = keep[:, 6:] = False
    return np.asarray(rows, np.int32), keep


TEXTS = ([batch(FORGET, 0)], [batch(RETAIN, 1)])
ABILITY, OTHERS = token_accuracy([batch(FORGET, 2)]), {"other": token_accuracy([batch(RETAIN, 3)])}
CONFIG = UnlearningConfig(retain_frequencies=(0.01,), latents=(5,), multipliers=(1.0, 50.0))


def test_exact_latents_take_the_ability_away_and_nothing_else():
    lines = []
    found = unlearning(MODEL, "x", EXACT, TEXTS, ABILITY, OTHERS, CONFIG, progress=lines.append)
    assert found.unchanged == 1
    assert found.score == 1
    assert found.best is not None
    assert sorted(found.best.latents) == list(FORGET)
    assert found.best.kept == 1
    assert len(found.settings) == len(lines) == 2


def test_two_of_five_latents_take_two_fifths_away():
    """The texts are runs of one circle: each of its tokens is a fifth of the predictions."""
    found = unlearning(MODEL, "x", EXACT, TEXTS, ABILITY, OTHERS, dataclasses.replace(CONFIG, latents=(2,)))
    tokens, keep = batch(FORGET, 2)
    assert found.best is not None
    counted = keep[:, :-1] & keep[:, 1:]
    hit = np.isin(tokens[:, :-1], found.best.latents)
    assert found.score == pytest.approx((hit & counted).sum() / counted.sum())


def test_mixed_latents_cannot_do_it():
    """Each latent is the sum of a forgotten and a retained token: none is rare on retained texts, none is clamped."""
    pairs = jnp.stack([MODEL.E[a] + MODEL.E[b] for a, b in zip(FORGET, RETAIN)])
    mixed = controls.oracle(pairs, jnp.zeros(VOCAB), 0.1)
    found = unlearning(MODEL, "x", mixed, TEXTS, ABILITY, OTHERS, CONFIG)
    assert found.score == 0
    assert found.best is None
    harmful = unlearning(
        MODEL, "x", mixed, TEXTS, ABILITY, OTHERS, dataclasses.replace(CONFIG, retain_frequencies=(2.0,))
    )
    assert harmful.score == 0  # the ability goes away, and the other one too, which is not allowed
    assert min(s.forgotten for s in harmful.settings) < 0.5 > min(s.kept for s in harmful.settings)


def test_frequencies_count_kept_tokens_only():
    tokens, keep = batch(FORGET, 0)
    got = frequencies(MODEL, "x", EXACT, [(tokens, keep)])
    np.testing.assert_allclose(got, np.bincount(tokens[keep], minlength=VOCAB) / keep.sum())
    with pytest.raises(UserError, match="no kept token"):
        frequencies(MODEL, "x", EXACT, [(tokens, keep & False)])


def test_the_most_frequent_rare_latents_are_chosen():
    forget, retain = np.array([0.5, 0.9, 0.0, 0.7]), np.array([0.0, 0.5, 0.0, 0.009])
    assert choose_latents(forget, retain, 0.01, 5).tolist() == [3, 0]
    assert choose_latents(forget, retain, 0.001, 5).tolist() == [0]


def test_choices():
    prompts = np.asarray([[0, 1], [0, 6], [4, 0]])
    choices = np.asarray([[2, 9], [9, 7], [1, 5]])
    score = choice_accuracy(prompts, np.asarray([1, 1, 0]), choices, np.asarray([0, 1, 0]))
    assert score(MODEL) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="answers go from 0 to 2"):
        choice_accuracy(prompts, np.asarray([1, 1, 0]), choices, np.asarray([0, 1, 2]))
    with pytest.raises(UserError, match="one row per question"):
        choice_accuracy(prompts, np.asarray([1]), choices, np.asarray([0, 1, 1]))


def test_what_cannot_be_scored_is_refused():
    for ability, others, message in (
        (lambda model: 1.5, OTHERS, "score 1.5"),
        (lambda model: float("nan"), OTHERS, "score nan"),
        (ABILITY, {}, "at least one other ability"),
        (ABILITY, {"a": lambda model: 0.0}, "'a' has the score 0"),
    ):
        with pytest.raises(UserError, match=message):
            unlearning(MODEL, "x", EXACT, TEXTS, ability, others, CONFIG)
    with pytest.raises(UserError, match="no two neighbouring"):
        token_accuracy([])(MODEL)


def test_a_setting_without_latents_runs_no_model():
    """No latent is rare enough: nothing is clamped, and the figures are those of the unchanged model."""
    runs = []

    def ability(model):
        runs.append(model)
        return ABILITY(model)

    found = unlearning(
        MODEL, "x", EXACT, TEXTS, ability, OTHERS, dataclasses.replace(CONFIG, retain_frequencies=(0.0,))
    )
    assert [(s.latents, s.forgotten, s.kept) for s in found.settings] == [((), 1.0, 1.0)] * 2
    assert runs == [MODEL]
