"""Labelled examples from texts and tokens: classes, groups that leak, spans, token labels, and what is refused."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.data.token_offsets import token_positions
from jax_interp.data.tokenizer import train_bpe
from jax_interp.probes import LabelledTokens, from_tokens, tokenized, with_token_labels

TEXTS = ["The city of Paris is in France.", "The city of Rome is in France.", "The city of Rome is in Italy."]


@functools.cache
def tokenizer():
    return train_bpe(TEXTS * 3, 280)


def examples(texts=TEXTS, labels=(True, False, True), **more):
    return tokenized(tokenizer(), texts, labels, **more)


def test_tokens_are_those_of_the_text_and_bos_is_not_read():
    data = examples()
    for row, text in enumerate(TEXTS):
        ids = tokenizer().encode(text, bos=True)
        assert data.tokens[row, data.mask[row]].tolist() == ids
        assert data.tokens[row, data.readable[row]].tolist() == ids[1:]
    assert data.classes == ("False", "True")
    assert data.labels.tolist() == [1, 0, 1]
    assert data.counts() == {"False": 1, "True": 2}


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["yes", "no", "yes"], ("no", "yes"), [1, 0, 1]),
        ([10, 2, 10], ("2", "10"), [1, 0, 1]),
        (np.asarray([1, 0, 1]), ("0", "1"), [1, 0, 1]),
        (np.asarray([True, False, True]), ("False", "True"), [1, 0, 1]),
        ([0.5, 2.0, -1.0], (), [0.5, 2.0, -1.0]),
    ],
)
def test_classes_are_sorted_and_floats_are_targets(labels, classes, numbers):
    data = examples(labels=labels)
    assert (data.classes, data.labels.tolist()) == (classes, numbers)


def test_the_positive_class_can_be_named():
    data = examples(labels=["honest", "deceptive", "honest"])
    assert data.classes == ("deceptive", "honest")
    other = data.ordered(("honest", "deceptive"))
    assert [other.classes[i] for i in other.labels] == [data.classes[i] for i in data.labels]
    with pytest.raises(UserError, match="has the classes deceptive, honest"):
        data.ordered(("honest", "lie"))


def test_what_leaks_is_in_one_group():
    assert examples().groups is None
    same = examples([*TEXTS, TEXTS[0]], [1, 0, 1, 1])
    assert same.groups is not None
    assert same.groups.tolist() == [0, 1, 2, 0]
    assert same.repeated == 1
    cut = examples(context=5)  # "The city of" is all that is left
    assert cut.repeated >= 1
    assert cut.groups is not None
    assert len(set(cut.groups.tolist())) == 3 - cut.repeated
    by_city = examples(groups=["Paris", "Rome", "Rome"], pairs=np.asarray([[0, 1]]))
    assert by_city.groups is not None
    assert by_city.groups.tolist() == [0, 0, 0]  # the pair joins the two cities
    alone = examples(groups=["a", None, None])
    assert alone.groups is not None
    assert alone.groups.tolist() == [0, 1, 2]


def test_spans_cover_the_tokens_of_their_characters():
    parts = ["France", (23, 29), [(12, 16), "Italy"]]
    data = examples(spans={"country": parts, "none": [None, "", "Rome"]})
    for row, words in enumerate((["France"], [TEXTS[1][23:29]], ["Rome", "Italy"])):
        wanted = sorted({at for word in words for at in token_positions(tokenizer(), TEXTS[row], word, bos=True)})
        assert np.flatnonzero(data.spans["country"][row]).tolist() == wanted
    assert data.spans["none"].any(axis=1).tolist() == [False, False, True]


def test_token_labels_follow_from_spans():
    data = examples(spans={"city": ["Paris", "Rome", "Rome"], "land": ["France", "France", "Italy"]})
    some = with_token_labels(data, {"True": "city", "False": "land"}).token_labels
    every = with_token_labels(data, {"True": "city"}, otherwise="False").token_labels
    assert some is not None
    assert every is not None
    city, land = (data.spans[name] for name in ("city", "land"))
    np.testing.assert_array_equal(some, np.where(city, 1, np.where(land, 0, -1)))
    np.testing.assert_array_equal(every, np.where(city, 1, np.where(data.readable, 0, -1)))
    with pytest.raises(UserError, match="in the spans of two classes"):
        with_token_labels(data, {"True": "city", "False": "city"})
    with pytest.raises(UserError, match="no class 'lie'"):
        with_token_labels(data, {"lie": "city"})
    with pytest.raises(UserError, match="no span 'lie'; it has city, land"):
        with_token_labels(data, {"True": "lie"})


def test_labels_may_be_functions_of_tokens():
    tokens = np.asarray([[0, 4, 5, 6], [0, 7, 9, 1], [0, 2, 3, 3]])
    mask = tokens != 1
    data = from_tokens(tokens, mask, label=lambda t: t % 2 == 0, special_ids=[0])
    assert data.token_labels is not None
    assert data.token_labels.tolist() == [[-1, 1, 0, 1], [-1, 0, 0, -1], [-1, 1, 0, 0]]
    assert data.labels.tolist() == [1, 0, 1]  # one of its tokens is even
    assert data.readable.tolist() == (mask & (tokens != 0)).tolist()
    whole = from_tokens(tokens, mask, label=lambda t: t[:, 1] > 3, groups=["a", "b", "a"])
    assert (whole.labels.tolist(), whole.token_labels) == ([1, 1, 0], None)
    assert whole.groups is not None
    assert whole.groups.tolist() == [0, 1, 0]
    named = from_tokens(tokens, label=np.asarray([2, 0, 1]), classes=("x", "y", "z"))
    assert (named.classes, named.labels.tolist()) == (("x", "y", "z"), [2, 0, 1])


def test_some_examples_keep_what_belongs_to_them():
    data = examples(pairs=np.asarray([[0, 1], [1, 2]]), spans={"city": ["Paris", "Rome", "Rome"]})
    data = dataclasses.replace(data, columns={"country": ("France", "France", "Italy")})
    part = data.take(np.asarray([2, 1]))
    assert part.texts == (TEXTS[2], TEXTS[1])
    assert part.columns == {"country": ("Italy", "France")}
    assert part.pairs is not None
    assert part.pairs.tolist() == [[1, 0]]
    np.testing.assert_array_equal(part.spans["city"], data.spans["city"][[2, 1]])
    assert "2 examples (1 False, 1 True)" in part.describe()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: examples(labels=[1, 0]), "3 texts need as many labels"),
        (lambda: examples(labels=[1, None, 0]), "example 1 has no label"),
        (lambda: examples(labels=["a", "", "b"]), "example 1 has no label"),
        (lambda: examples(labels=[1.0, float("nan"), 0.0]), "example 1 has no label"),
        (lambda: examples(labels=[1.0, float("inf"), 0.0]), "target of example 1 is not finite"),
        (lambda: examples(labels=[1, True, 0]), "labels must be of one type"),
        (lambda: examples(labels=[1, 1.0, 0]), "labels must be of one type"),
        (lambda: examples([*TEXTS[:2], ""]), "example 2, '', has no token"),
        (lambda: examples([*TEXTS[:2], None]), "example 2 is a NoneType"),
        (lambda: examples(context=1), "leaves no token"),
        (lambda: examples(pairs=np.asarray([[0, 3]])), "two of the 3 examples"),
        (lambda: examples(spans={"x": ["Paris", "Rome"]}), "2 entries for 3 texts"),
        (lambda: examples(spans={"x": ["Paris", "Paris", "Rome"]}), "'x' of example 1: 'Paris' is not in"),
        (lambda: examples(spans={"x": ["i", "Rome", "Rome"]}), r"occurs 4 times in .* give the characters"),
        (lambda: examples(spans={"x": [(5, 99), None, None]}), r"\(5, 99\) are not a part"),
        (lambda: examples(spans={"x": ["France", None, None]}, context=8), "context=8 cuts example 0"),
        (lambda: from_tokens(np.ones((2, 3), int), label=np.ones(3)), "fit neither"),
        (lambda: from_tokens(np.ones((2, 3), int), label=np.full((2, 3), -1)), "no token has a class"),
        (lambda: from_tokens(np.ones((2, 3), int), label=[0, 5], classes=("a", "b")), "one of 2 classes"),
        (lambda: from_tokens(np.ones((1, 3), int), np.asarray([[1, 0, 1]]), label=[1]), "between real tokens"),
        (lambda: from_tokens(np.ones((1, 3), int), np.zeros((1, 3)), label=[1]), "no real token"),
        (lambda: dataclasses.replace(examples(), labels=np.zeros(2, int)), "2 entries for 3 examples"),
        (lambda: dataclasses.replace(examples(), labels=np.full(3, np.nan), classes=()), "finite floats"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_padding_may_be_on_the_left():
    tokens = np.asarray([[1, 1, 5], [4, 5, 6]])
    data = from_tokens(tokens, tokens != 1, label=[0, 1])
    assert isinstance(data, LabelledTokens)
