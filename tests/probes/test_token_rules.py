"""Token rules: which tokens each rule names, on padding of both sides, and as JSON."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.core import config_json
from jax_interp.probes import (
    TOKEN_RULES,
    AfterSpan,
    All,
    BeforeSpan,
    Last,
    LastOfSpan,
    Nth,
    Span,
    TokenRule,
    from_tokens,
    tokens_of,
)  # fmt: skip

# 0 is BOS, 1 is padding. The second row has its padding on the left.
TOKENS = np.asarray([[0, 2, 3, 4, 5, 6, 1], [1, 1, 0, 2, 3, 4, 5]])
SPAN = np.asarray([[0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0]], bool)
DATA = dataclasses.replace(from_tokens(TOKENS, TOKENS != 1, label=[0, 1], special_ids=[0]), spans={"x": SPAN})

CASES: list[tuple[TokenRule, str, list[list[int]]]] = [
    (Last(), "last", [[6], [5]]),
    (Last(2), "last 2", [[5, 6], [4, 5]]),
    (Last(9), "last 9", [[2, 3, 4, 5, 6], [2, 3, 4, 5]]),
    (All(), "all", [[2, 3, 4, 5, 6], [2, 3, 4, 5]]),
    (All(skip_first=2), "all[2:]", [[4, 5, 6], [4, 5]]),
    (All(1, 2), "all[1:-2]", [[3, 4], [3]]),
    (Nth(0), "token 0", [[2], [2]]),
    (Nth(-2), "token -2", [[5], [4]]),
    (Span("x"), "x", [[3, 4], [3, 4]]),
    (Span("x", skip_last=1), "x[:-1]", [[3], [3]]),
    (LastOfSpan("x"), "last of x", [[4], [4]]),
    (BeforeSpan("x"), "before x", [[2], [2]]),
    (AfterSpan("x"), "after x", [[5], [5]]),
    (AfterSpan("x", 2), "2 after x", [[5, 6], [5]]),
]


@pytest.mark.parametrize(("rule", "name", "expected"), CASES, ids=lambda x: str(x) if isinstance(x, TokenRule) else "")
def test_a_rule_names_its_tokens_and_is_a_config(rule, name, expected):
    read = tokens_of(rule, DATA)
    assert [TOKENS[row, read[row]].tolist() for row in range(2)] == expected
    assert str(rule) == name
    assert config_json.from_json(TokenRule, config_json.to_json(rule)) == rule


def test_every_rule_has_a_case():
    own = {kind for kind in TOKEN_RULES if kind.__module__.startswith("jax_interp.")}
    assert own == {type(rule) for rule, _, _ in CASES}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tokens_of(Nth(4), DATA), "token 4 names no token of example 1"),
        (lambda: tokens_of(Span("y"), DATA), "no span 'y'; it has 'x'"),
        (lambda: tokens_of(Span("x", skip_first=2), DATA), r"x\[2:\] names no token of example 0"),
        (lambda: tokens_of(All(skip_last=4), DATA), "names no token of example 1"),
        (lambda: Last(0), r"Last\(n=0\): give at least 1"),
        (lambda: All(skip_first=-1), "give at least 0"),
    ],
)
def test_a_rule_that_names_nothing_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
