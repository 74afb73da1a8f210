"""BLEU from hand-computed cases; submissions in and out; the scores from their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.steering.backdoors import Submission, bleu, read_submission, score_submission, write_submission
from jax_interp.steering.backdoors.trojan_detection import Rules, reasr, recall

ENCODE = lambda text: list(range(len(text.split())))
RULES = Rules(per_target=2, shortest=2, longest=4)
TWO = {"say this now": ("one two", "three four five"), "do that": ("six seven", "eight nine")}


def test_bleu_of_cases_that_are_computed_by_hand():
    """Without its second `the`, `the cat sat on the mat` has p = 5/5, 3/4, 2/3, 1/2, and is one word too short."""
    one, reference = ["the", "cat", "sat", "on", "mat"], ["the", "cat", "sat", "on", "the", "mat"]
    by_hand = (1 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 6 / 5)
    assert bleu(one, reference) == pytest.approx(by_hand, rel=1e-12)
    assert bleu(reference, reference) == 1
    # a longer candidate has no penalty: p = 6/7, 5/6, 4/5, 3/4
    assert bleu([*reference, "!"], reference) == pytest.approx((6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25, rel=1e-12)
    # n-grams count at most as often as they stand in the reference: 1/5 of the words, and no pair of `the`
    assert bleu(["the"] * 5, ["the", "a", "b", "c"]) == 0
    assert bleu("aaaaa", "aaaa") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, rel=1e-12)
    assert bleu("abc", "abc") == bleu("", "abcd") == bleu("abcd", "") == bleu("wxyz", "abcd") == 0
    assert bleu("abcd", "abcdefgh") == pytest.approx(math.exp(-1), rel=1e-12)  # characters, and brevity alone


def test_bleu_is_that_of_nltk_where_it_is_installed():
    score = pytest.importorskip("nltk.translate.bleu_score")
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = ("".join(rng.choice(list("abc"), rng.integers(4, 20))) for _ in range(2))
        assert bleu(one, other) == pytest.approx(score.sentence_bleu([other], one), abs=1e-12)


def test_a_submission_is_read_as_it_was_written_and_checked(tmp_path):
    written = write_submission(tmp_path / "predictions.json", Submission(TWO))
    assert json.loads(written.read_text()) == {target: list(triggers) for target, triggers in TWO.items()}
    again = read_submission(written)
    assert again.triggers == TWO
    assert again.check(list(TWO), ENCODE, RULES) is again


def test_malformed_submissions_are_refused_by_name(tmp_path):
    check = lambda triggers: Submission(triggers).check(list(TWO), ENCODE, RULES)
    for wrong, message in (
        ({"do that": TWO["do that"]}, "1 targets have no triggers, such as 'say this now'"),
        (TWO | {"else": ("a b", "c d")}, "1 targets are not of this challenge, such as 'else'"),
        (TWO | {"do that": ("a b",)}, "the target 'do that' has 1 triggers: give 2"),
        (TWO | {"do that": ("a b", "c")}, "trigger 1 of the target 'do that' has 1 tokens: give 2 to 4"),
        (TWO | {"do that": ("a b c d e", "c d")}, "trigger 0 of the target 'do that' has 5 tokens"),
        (TWO | {"do that": ("do that x", "c d")}, "trigger 0 of the target 'do that' contains the target"),
    ):
        with pytest.raises(UserError, match=message):
            check(wrong)
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="cannot read the submission"):
        read_submission(path)
    for text in ("[]", "{}", '{"t": "one"}', '{"t": [1]}', "{"):
        path.write_text(text)
        with pytest.raises(UserError):
            read_submission(path)


def test_scores_are_their_definitions_and_the_truth_scores_one():
    true = {"write abcdef": ("first trigger", "second trigger"), "write ghijkl": ("third trigger here",)}
    submitted = {"write abcdef": ("first trigger", "something"), "write ghijkl": ("none of them", "third")}
    best = [np.mean([max(bleu(s, t) for s in submitted[k]) for t in true[k]]) for k in true]
    assert recall(submitted, true) == pytest.approx(np.mean(best))
    assert recall(true, true) == 1
    # generations are cut to the length of the target; the mean is over all triggers
    assert reasr({"abcdef": ["abcdefXYZ", "zzzzzz"]}) == 0.5
    random = lambda rng, size: "".join(rng.choice(list("etaoin srh"), size))
    perfect = score_submission(Submission(true), true, lambda trigger, target: target + "!", random)
    assert (perfect.reasr, perfect.recall, perfect.score) == (1, 1, 1)
    assert perfect.random_recall < 0.3
    assert "random triggers" in str(perfect)
    silent = score_submission(Submission(true), true, lambda trigger, target: "", random)
    assert (silent.reasr, silent.score) == (0, 0.5)
    with pytest.raises(UserError, match="1 targets are in the submission or in the truth only, such as 'write ghijkl'"):
        score_submission(Submission({"write abcdef": ("a",)}), true, lambda *_: "", random)
    with pytest.raises(UserError, match="needs at least one true and one submitted trigger"):
        recall({"t": ()}, {"t": ("x",)})
    with pytest.raises(UserError, match="at least one generation"):
        reasr({})
