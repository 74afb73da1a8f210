"""Labelled fragments of the standard library: Python's parser says the same as the labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.data.stdlib import stdlib_corpus
from jax_interp.recipes.probes.code_fragments import code_fragments


@pytest.mark.parametrize(("question", "positive"), [("inside-strings", "string"), ("inside-comments", "comment")])
def test_labels_are_those_of_a_scan_of_the_whole_file(question, positive):
    columns = code_fragments(question, 24, seed=1)
    corpus = stdlib_corpus()
    texts = {document.path: document.text for document in (*corpus.train, *corpus.validation)}
    assert columns["label"].count(positive) == columns["label"].count("code") == 12
    for text, label, module in zip(columns["text"], columns["label"], columns["module"], strict=True):
        whole = texts[module]
        ends = [i + len(text) for i in range(len(whole)) if whole.startswith(text, i)]
        assert any(_state(whole[:end]) == label for end in ends)


def _state(text: str) -> str:
    """ "string", "comment" or "code" at the end of a text, by a scan over its characters."""
    state, i = "code", 0
    while i < len(text):
        if state == "code":
            if text[i] == "#":
                state = "comment"
            elif text[i] in "'\"":
                state = text[i] * 3 if text.startswith(text[i] * 3, i) else text[i]
                i += len(state) - 1
        elif state == "comment":
            state = "code" if text[i] == "\n" else state
        elif text[i] == "\\":
            i += 1
        elif text.startswith(state, i):
            i += len(state) - 1
            state = "code"
        i += 1
    return state if state in ("code", "comment") else "string"


def test_a_draw_is_fixed_by_its_seed_and_spread_over_modules():
    first, again, other = (code_fragments("inside-strings", 40, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["text"] != other["text"]
    assert np.unique(first["module"], return_counts=True)[1].max() <= 8


def test_what_there_is_not_is_refused(monkeypatch):
    corpus = stdlib_corpus()
    few = dataclasses.replace(corpus, train=corpus.train[:3], validation=())
    monkeypatch.setattr("jax_interp.recipes.probes.code_fragments.stdlib_corpus", lambda: few)
    with pytest.raises(UserError, match="there are inside-strings, inside-comments"):
        code_fragments("inside-words", 10, 0)
    with pytest.raises(UserError, match=r"there are \d+ fragments"):
        code_fragments("inside-comments", 1000, 0)
