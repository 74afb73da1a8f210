"""Absorption, on the tree world (parents with exclusive children), where it is known what is absorbed."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from world_texts import compared, oracle, world

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.evaluation.benchmarks.absorption import absorption, example_absorption, f1
from jax_interp.dictionaries.evaluation.benchmarks.first_letters import vocabulary_words, word_activations
from jax_interp.dictionaries.evaluation.benchmarks.measure import DICTIONARY, RANDOM
from jax_interp.dictionaries.evaluation.benchmarks.pooled import Place

WORLD = world()
PARENTS = np.array([0, 4, 8])
CHILDREN = PARENTS[:, None] + np.array([1, 2, 3])
X, CODES = (np.asarray(a) for a in WORLD.sample(jax.random.key(3), 1500))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Absorbed:
    """The true features, but the latent of a parent is off where a child is on; the children's latents write both."""

    directions_: jax.Array
    W_dec: jax.Array

    def encode(self, x):
        z = x @ self.directions_.T
        z = jnp.where(z > 0.5, z, jnp.zeros_like(z))
        for parent in PARENTS.tolist():
            child = jnp.any(z[..., parent + 1 : parent + 4] > 0, axis=-1)
            z = z.at[..., parent].set(jnp.where(child, 0.0, z[..., parent]))
        return z

    def decode(self, z):
        return z @ self.W_dec


def absorbed() -> Absorbed:
    rows = WORLD.directions
    for parent in PARENTS.tolist():
        rows = rows.at[parent + 1 : parent + 4].add(WORLD.directions[parent][None, :])
    return Absorbed(WORLD.directions, rows)


def one(coder: Any, parent: int, scale: float = 1.0):
    """The absorption of one parent, with its true direction as the probe."""
    rows = CODES[:, parent] > 0
    main = np.arange(20) == parent
    z, W = coder.encode(jnp.asarray(X[rows])), coder.W_dec
    got = example_absorption(
        jnp.asarray(X[rows]), z / scale, W * scale, WORLD.directions[parent] * 3, jnp.asarray(main)
    )
    return [np.asarray(a) for a in got], (CODES[rows][:, parent + 1 : parent + 4] > 0).any(1)


@pytest.mark.parametrize("parent", PARENTS.tolist())
def test_the_true_features_absorb_nothing(parent):
    (fraction, full), _ = one(oracle(WORLD), parent)
    assert not fraction.any()
    assert not full.any()


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_exactly_the_examples_with_a_child_are_absorbed(scale):
    """P(child | parent) = 0.6, so the recall of the parent's latent is 0.4. The norm of rows does not matter."""
    for parent in PARENTS.tolist():
        (fraction, full), child = one(absorbed(), parent, scale)
        np.testing.assert_array_equal(full, child)
        np.testing.assert_array_equal(fraction, child.astype(float))
        assert abs(full.mean() - 0.6) < 4 * np.sqrt(0.24 / len(full))


def test_partial_absorption_is_the_share_of_the_absorber():
    """M = 0.3 and one absorber with 0.5 of x·p̂ = 1: A' = 0.5, and the fraction is 0.5 / 0.8."""
    d = jnp.eye(3)
    x = jnp.asarray([[1.0, 0.0, 0.0]])
    directions = jnp.stack([d[0], d[0] + d[1]])
    got, full = example_absorption(x, jnp.asarray([[0.3, 0.5]]), directions, d[0], jnp.asarray([True, False]))
    assert float(got[0]) == pytest.approx(0.625)
    assert not full[0]
    for z, wanted in (([0.3, 0.39], 0.0), ([0.3, 0.9], 0.7), ([1.1, 0.9], 0.0), ([0.0, 0.5], 1.0), ([-0.2, 0.5], 1.0)):
        got, _ = example_absorption(x, jnp.asarray([z]), directions, d[0], jnp.asarray([True, False]))
        assert float(got[0]) == pytest.approx(wanted), z


@pytest.fixture(scope="module")
def measured():
    labels = CODES[:, PARENTS] > 0
    names = ("a", "b", "c")
    return {
        name: absorption(compared(WORLD, coder, reseeds=2), X, labels, names, splits=2)
        for name, coder in (("oracle", oracle(WORLD)), ("absorbed", absorbed()))
    }


def by_name(result):
    return {m.name: m for m in result.measures()}


def test_the_whole_measure_finds_it(measured):
    of_oracle, of_absorbed = (by_name(measured[name]) for name in ("oracle", "absorbed"))
    assert of_oracle["absorption, full"].estimates[DICTIONARY].value == 0
    assert of_oracle["absorption, mean fraction"].estimates[DICTIONARY].value < 0.01
    assert of_oracle["splitting"].estimates[DICTIONARY].value == 1
    assert of_oracle["first-latent F1"].estimates[DICTIONARY].value > 0.99
    for coder in (DICTIONARY, RANDOM, "principal components", "raw values"):
        assert coder in of_absorbed["absorption, full"].estimates
    # The latents of the children also tell a parent, so k grows, and what stays absorbed is what they do not cover.
    assert of_absorbed["first-latent F1"].estimates[DICTIONARY].value == pytest.approx(2 * 0.4 / 1.4, abs=0.08)
    assert of_absorbed["splitting"].estimates[DICTIONARY].value > 2
    assert "only 3 concepts" in of_oracle["splitting"].warning


def test_the_main_latent_is_the_concepts_own(measured):
    for name, parent in zip(("a", "b", "c"), PARENTS, strict=True):
        assert [split.main.tolist() for split in measured["oracle"].found[DICTIONARY][name]] == [[parent]] * 2


def test_concepts_that_the_activations_do_not_have_are_refused():
    noise = np.random.default_rng(0).random((len(X), 2)) < 0.3
    with pytest.raises(UserError, match="no concept has a linear probe"):
        absorption(compared(WORLD, reseeds=1), X, noise, ("a", "b"), splits=1)
    with pytest.raises(UserError, match="a: 0 of 1500 examples"):
        absorption(compared(WORLD, reseeds=1), X, noise & False, ("a", "b"), splits=1)
    with pytest.raises(UserError, match="2 splits need"):
        absorption(compared(WORLD, reseeds=1), X, noise, ("a", "b"), splits=2)


def test_f1():
    scores, y = np.array([1.0, 1.0, -1.0, -1.0]), np.array([True, False, True, False])
    assert f1(scores, y) == 0.5
    assert f1(-np.ones(4), np.zeros(4, bool)) == 0


WORDS = [f" {a}{b}" for a in "abz" for b in ("at", "et", "it")] + [" q", "cat", " c4t", " ünder"]


def encode_batch(texts, bos):
    return [[100] * bos + [WORDS.index(f" {line.split()[0]}") for line in text.splitlines()] for text in texts]


TOKENIZER: Any = SimpleNamespace(
    bos_id=100,
    vocab_size=len(WORDS),
    special_ids=frozenset(),
    texts=lambda ids: [WORDS[i] for i in ids],
    encode_batch=encode_batch,
)


def test_words_are_tokens_of_letters_with_a_space():
    words = vocabulary_words(TOKENIZER, per_letter=3)
    assert words.texts == tuple(WORDS[:9])
    assert words.letters() == ("A", "B", "Z")
    np.testing.assert_array_equal(words.labels().argmax(1), np.repeat([0, 1, 2], 3))
    with pytest.raises(UserError, match="needs two letters"):
        vocabulary_words(TOKENIZER, per_letter=4)


def test_the_activation_is_that_at_the_word_after_examples_of_others():
    class Model:
        def __call__(self, tokens, *, taps=()):
            from jax_interp.surgery import Site

            site = Site.open(taps)
            number = jnp.arange(tokens.shape[1], dtype=jnp.float32)[None, :]
            x = jnp.stack([tokens.astype(jnp.float32), jnp.broadcast_to(number, tokens.shape)], axis=-1)
            return site.close(site("x", x))

    words = vocabulary_words(TOKENIZER, per_letter=3)
    model = jax.tree_util.register_static(Model)()
    got = word_activations(Place(model, "x", TOKENIZER, context=6), words, examples=4)
    np.testing.assert_array_equal(got, [[i, 5] for i in words.ids])  # BOS, four examples, the word
    with pytest.raises(UserError, match="6 tokens, more than the context 5"):
        word_activations(Place(model, "x", TOKENIZER, context=5), words, examples=4)
    with pytest.raises(UserError, match="examples=9 of 9 words"):
        word_activations(Place(model, "x", TOKENIZER), words, examples=9)
