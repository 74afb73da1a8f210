"""SHIFT on words with known directions: what is ablated, accuracies, controls; classifiers; tables; refusals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.circuits import measure
from jax_interp.circuits.feature_circuits import (
    AttributedTexts,
    EffectsConfig,
    ShiftConfig,
    classifier_contrast,
    classifier_effects,
    feature_effects,
    from_tables,
    judge_by_list,
    judge_by_tokens,
    over_seeds,
    shift,
    train_classifier,
)
from jax_interp.core.errors import UserError
from jax_interp.data.labelled import labelled
from jax_interp.dictionaries import Dictionary, ReLU
from jax_interp.surgery import AddressError, call, grad_at, read, sites
from jax_interp.toys.two_attributes import TwoAttributesConfig, random_texts, word_model

WORLD = TwoAttributesConfig(words=3, fillers=4, length=16, d=17)
ADDRESS = "x"
CONFIG = ShiftConfig(ADDRESS, n=20, texts=40, first=1, C=100.0, effects=EffectsConfig("attribution", "zero"))


@pytest.fixture(scope="module")
def model():
    """Each word has its own direction, orthogonal to the others. Neurons mix words."""
    return word_model(jax.random.key(0), WORLD)


@pytest.fixture(scope="module")
def dictionary(model):
    """Feature i is word i."""
    d = WORLD.vocab
    return {ADDRESS: Dictionary(model.directions.T, jnp.zeros(d), model.directions, jnp.zeros(d), ReLU())}


def texts(seed, n):
    return AttributedTexts(*random_texts(jax.random.key(seed), n, WORLD))


@pytest.fixture(scope="module")
def found(model, dictionary):
    return shift(
        model, texts(0, 400).agreeing(), texts(1, 600), dictionary,
        judge_by_tokens(WORLD.is_word("intended"), WORLD.is_word("spurious")), CONFIG, balanced=texts(2, 400),
        concepts=np.stack([np.full(4, word) for word in np.flatnonzero(WORLD.is_word("intended"))]),
    )  # fmt: skip


def test_shift_reaches_what_balanced_labels_reach(found):
    scores = {
        method: dict(zip(("intended", "spurious", "worst"), row, strict=True))
        for method, row in zip(found.scores.axes["method"], found.scores.values, strict=True)
    }
    assert scores["original"]["spurious"] > 0.95  # the spurious attribute is easier
    assert scores["original"]["intended"] < 0.65
    assert scores["original"]["worst"] < 0.2
    assert scores["SHIFT + retrain"]["intended"] > 0.8
    assert abs(scores["SHIFT + retrain"]["intended"] - scores["oracle"]["intended"]) < 0.03
    assert abs(scores["SHIFT + retrain"]["spurious"] - 0.5) < 0.06
    for control in ("random features + retrain", "neurons", "neurons + retrain"):
        assert scores[control]["intended"] < scores["SHIFT + retrain"]["intended"] - 0.1
    assert scores["concept bottleneck"]["intended"] > 0.8  # it is given the words of the intended attribute


def test_the_ablated_features_are_the_words_of_the_spurious_attribute(found):
    words = found.candidates.circuit.feature
    np.testing.assert_array_equal(found.ablated, WORLD.is_word("spurious")[words])
    assert set(np.flatnonzero(WORLD.is_word("spurious"))) <= set(words[found.ablated])
    assert (
        found.candidates.tokens[found.candidates.examples > 0.5]
        == np.repeat(words, (found.candidates.examples > 0.5).sum(axis=1))
    ).all()


def test_a_judge_with_a_short_list_finds_the_same_features(model, dictionary, found):
    by_list = judge_by_list(texts(3, 200))(found.candidates)
    used = np.isin(
        found.candidates.circuit.feature, np.flatnonzero(WORLD.is_word("spurious") | WORLD.is_word("intended"))
    )
    np.testing.assert_array_equal(by_list[used], found.ablated[used])
    table = over_seeds([found, found])
    assert table.shape == (2, len(found.scores.axes["method"]), 3)
    np.testing.assert_allclose(table.std("seed").values, 0)


def test_features_tell_apart_classifiers_that_agree_on_all_labelled_texts(model, dictionary):
    """One reads the intended words, the other the spurious words. The labels say the same of both."""
    clear = dataclasses.replace(WORLD, misleading=0.0, intended=0.3)
    make = lambda seed, n: AttributedTexts(*random_texts(jax.random.key(seed), n, clear))
    balanced, labelled_texts = make(4, 500), make(5, 300).agreeing()
    one, other = (train_classifier(model, balanced, y, CONFIG) for y in (balanced.intended, balanced.spurious))
    run = lambda c: np.asarray(c(jnp.asarray(labelled_texts.tokens))[:, 0, 1] > 0)
    both = (run(one) == labelled_texts.intended) & (run(other) == labelled_texts.intended)
    agreed = labelled_texts.rows(both)
    assert both.mean() > 0.9  # the labelled texts: both classifiers are right on all of them
    share = []
    for classifier in (one, other):
        effects = classifier_effects(classifier, agreed, agreed.intended, dictionary, CONFIG).latents[0]
        share.append(np.abs(effects[WORLD.is_word("spurious")]).sum() / np.abs(effects).sum())
    assert share[0] < 0.15 < 0.85 < share[1]


def test_a_classifier_is_a_model_of_the_contract(model, dictionary):
    data = texts(6, 50)
    classifier = train_classifier(model, data, data.intended, CONFIG)
    tokens = jnp.asarray(data.tokens)
    value = read(model, ADDRESS)(tokens)[1][ADDRESS]
    expected = value[:, 1:].mean(axis=1) @ classifier.weight + classifier.bias
    logits = classifier(tokens)
    np.testing.assert_allclose(logits[:, 0, 1] - logits[:, 0, 0], expected, atol=1e-5)
    assert ADDRESS in sites(classifier)(tokens)
    again, seen = call(read(classifier, ADDRESS), tokens)  # also at the value that the probe reads
    np.testing.assert_allclose(again, logits, atol=1e-5)
    np.testing.assert_array_equal(seen[ADDRESS], value)
    gradient = grad_at(classifier, ADDRESS)(lambda y: (y[:, 0, 1] - y[:, 0, 0]).sum())(tokens)[1][ADDRESS]
    np.testing.assert_allclose(gradient[0, 1], classifier.weight / 15, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, 0], 0)
    contrast = classifier_contrast(data, data.intended)
    np.testing.assert_allclose(
        measure(classifier, tokens, contrast), np.where(data.intended, expected, -expected), atol=1e-5
    )
    exact = feature_effects(classifier, contrast, dictionary, EffectsConfig("exact", "zero"))
    slope = feature_effects(classifier, contrast, dictionary, EffectsConfig("attribution", "zero"))
    np.testing.assert_allclose(exact.latents[0], slope.latents[0], atol=1e-5)
    with pytest.raises(AddressError):
        dataclasses.replace(classifier, address="nothing")(tokens)


def test_two_columns_of_a_table_become_texts_with_two_attributes():
    rows = [
        ("a nurse she", "nurse", 1),
        ("a surgeon he", "surgeon", 0),
        ("a nurse he", "nurse", 0),
        ("a poet he", "poet", 0),
    ]
    columns = list(zip(*rows, strict=True))
    job, gender = labelled("job", columns[0], columns[1]), labelled("gender", columns[0], columns[2])
    found = from_tables(job, gender, Words(), classes=("surgeon", "nurse"))
    assert found.intended.tolist() == [True, False, True]
    assert found.spurious.tolist() == [True, False, False]
    assert found.mask.sum(axis=1).tolist() == [4, 4, 4]
    assert len(found.agreeing()) == 2
    with pytest.raises(UserError, match="give two of them"):
        from_tables(job, gender, Words())
    with pytest.raises(UserError, match="each group"):
        found.balanced(np.random.default_rng(0))


class Words:
    """A tokenizer whose tokens are letters' codes of words; BOS is 0."""

    bos_id = 0

    def encode_batch(self, texts, bos):
        return [[0] * bos + [len(word) for word in text.split()] for text in texts]


def test_what_is_not_the_setting_of_shift_is_refused(model, dictionary, found):
    judge = lambda candidates: found.ablated[:2]
    with pytest.raises(UserError, match="attributes differ"):
        shift(model, texts(0, 50), texts(1, 50), dictionary, judge, CONFIG)
    with pytest.raises(UserError, match="all four are needed"):
        shift(model, texts(0, 50).agreeing(), texts(1, 50).agreeing(), dictionary, judge, CONFIG)
    with pytest.raises(UserError, match="one bool for each"):
        shift(model, texts(0, 100).agreeing(), texts(1, 50), dictionary, judge, CONFIG)
    with pytest.raises(UserError, match="ablation='zero'"):
        ShiftConfig(ADDRESS, effects=EffectsConfig())
    with pytest.raises(UserError, match="all four"):
        judge_by_list(texts(0, 50).agreeing())
    with pytest.raises(UserError, match="False and True"):
        AttributedTexts(np.zeros((2, 3), int), np.asarray([0, 2]), np.asarray([0, 1]))
