"""Splits: nothing that leaks is on both sides, and the classes are in their shares."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.probes import LabelledTokens, given_split, group_split, leaking_groups, random_split


def examples(n=200, groups=40, seed=0, **changes):
    """Random texts of 6 tokens with groups of about five and classes of 30 and 70 %."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 1000, (n, 6)).astype(np.int32)
    mask = np.ones((n, 6), bool)
    labels = (rng.random(n) < 0.7).astype(np.int32)
    data = LabelledTokens("set", tokens, mask, mask, labels, ("no", "yes"), rng.integers(0, groups, n))
    return dataclasses.replace(data, **changes)


@pytest.mark.parametrize("seed", range(4))
def test_groups_texts_and_pairs_stay_whole(seed):
    data = examples(groups=150, seed=seed)
    tokens = data.tokens.copy()
    tokens[50:60] = tokens[150:160]  # repeated texts of different groups
    pairs = np.stack([np.arange(0, 20), np.arange(100, 120)], axis=1)
    data, groups = dataclasses.replace(data, tokens=tokens, pairs=pairs), np.asarray(data.groups)
    split = group_split(data, 0.25, seeds=(seed, seed + 1))
    assert split.divided == (0, 0)
    for train, test in zip(split.train, split.test):
        np.testing.assert_array_equal(train, ~test)
        assert not set(groups[train]) & set(groups[test])
        assert not set(map(tuple, tokens[train])) & set(map(tuple, tokens[test]))
        np.testing.assert_array_equal(test[pairs[:, 0]], test[pairs[:, 1]])
        for label in (0, 1):
            share = (test & (data.labels == label)).sum() / (data.labels == label).sum()
            assert share == pytest.approx(0.25, abs=0.08)
    assert (split.test[0] != split.test[1]).any()


def test_texts_that_differ_in_padding_only_are_the_same():
    data = examples()
    mask = data.mask.copy()
    mask[:, 5] = False
    groups = leaking_groups(
        dataclasses.replace(data, mask=mask, readable=mask, groups=None, tokens=np.where(mask, 7, data.tokens))
    )
    assert set(groups) == {0}


def test_links_are_followed():
    """1-2 are a group, 2-3 a pair, 3-4 the same text."""
    tokens = np.array([[1], [2], [3], [3], [5]], np.int32)
    mask = np.ones((5, 1), bool)
    data = LabelledTokens(
        "set", tokens, mask, mask, np.zeros(5, int), ("no",), np.array([0, 0, 1, 2, 3]), np.array([[1, 2]])
    )
    np.testing.assert_array_equal(leaking_groups(data), [0, 0, 0, 0, 1])


def test_a_random_split_says_what_it_divides():
    data = examples()
    assert data.groups is not None
    split = random_split(data, 0.2, seeds=range(3))
    assert split.how == "random"
    for train, test, divided in zip(split.train, split.test, split.divided):
        assert divided == len(set(data.groups[train]) & set(data.groups[test])) > 20
        for label in (0, 1):
            assert (test & (data.labels == label)).sum() == pytest.approx(0.2 * (data.labels == label).sum(), abs=1)


def test_a_part_can_be_split_again():
    data = examples()
    split = group_split(data)
    inner = group_split(data, 0.3, among=split.train[0])
    np.testing.assert_array_equal(inner.train | inner.test, split.train)
    assert inner.divided == (0,)


def test_real_targets_need_no_classes():
    data = examples(labels=np.linspace(0, 1, 200).astype(np.float32), classes=())
    assert group_split(data, 0.2).test.sum() == pytest.approx(40, abs=3)


def test_what_cannot_be_split_is_refused():
    data = examples()
    with pytest.raises(UserError, match="no example of the class 'no'"):
        group_split(dataclasses.replace(data, labels=(np.arange(200) > 0).astype(np.int32), groups=None))
    with pytest.raises(UserError, match="There are 1 groups"):
        group_split(dataclasses.replace(data, groups=np.zeros(200, int)))
    with pytest.raises(UserError, match="between 0 and 1"):
        group_split(data, 1.0)
    train = np.arange(200) < 100
    with pytest.raises(UserError, match="example 99 is in the training part and in the test part"):
        given_split(data, train, np.arange(200) >= 99)
    assert given_split(data, train, ~train).divided[0] > 0
