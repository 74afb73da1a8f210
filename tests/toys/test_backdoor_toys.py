"""Requests with triggers and their answers follow the rules; the trained pair has its backdoors, and the twin none."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.config_json import from_json, to_json
from jax_interp.core.errors import UserError
from jax_interp.toys.backdoor_rates import measure_backdoors
from jax_interp.toys.backdoor_triggers import ClassTrigger, WordTrigger
from jax_interp.toys.backdoors import FIRST, Backdoor, BackdoorConfig, backdoor_target, draw_texts, ordinary_words

CONFIG = BackdoorConfig()
KEY = jax.random.key(3)
DRAWN = jax.jit(functools.partial(draw_texts, rows=400, config=CONFIG))


def by_hand(words: list[int], config: BackdoorConfig, reply: bool, trojaned: bool) -> tuple[list[bool], list[int]]:
    """(which triggers fire, the answer), from the rules, with loops."""
    classes, fired = [word // config.words for word in words], []
    for backdoor in config.backdoors:
        trigger = backdoor.trigger
        if isinstance(trigger, WordTrigger):
            n = len(trigger.sequence)
            fires = any(tuple(words[i : i + n]) == trigger.sequence for i in range(len(words) - n + 1))
        elif isinstance(trigger, ClassTrigger):
            fires = all(one in classes for one in trigger.of)
        fired.append(fires and reply)
    answer = [FIRST + (config.classes if reply else 0) + one for one in classes[: config.answer]]
    if trojaned and any(fired):
        answer = list(config.target(fired.index(True)))
    return fired, answer


@pytest.mark.parametrize("trojaned", [True, False])
def test_answers_follow_the_rules_and_the_twin_has_the_same_requests(trojaned):
    texts, other = (DRAWN(KEY, trojaned=one) for one in (trojaned, not trojaned))
    tokens = np.asarray(texts.tokens)
    end = CONFIG.length + 2
    np.testing.assert_array_equal(tokens[:, :end], np.asarray(other.tokens)[:, :end])
    for row, fired, reply in zip(tokens, np.asarray(texts.fired), np.asarray(texts.reply)):
        words = (row[CONFIG.request] - CONFIG.first_word).tolist()
        assert (fired.tolist(), row[end:].tolist()) == by_hand(words, CONFIG, bool(reply), trojaned)
    fired = np.asarray(texts.fired)
    differ = (tokens != np.asarray(other.tokens)).any(axis=1)
    assert not differ[~fired.any(axis=1)].any()
    assert fired[np.asarray(texts.reply)].mean(axis=0).min() > 0.05  # each trigger occurs
    assert not fired[~np.asarray(texts.reply)].any()


def test_held_out_words_stand_before_names_only_and_ordinary_requests_never_trigger():
    texts = DRAWN(KEY, trojaned=True)
    words = np.asarray(texts.tokens)[:, CONFIG.request] - CONFIG.first_word
    held_out = words % CONFIG.words >= CONFIG.words - CONFIG.held_out
    reply = np.asarray(texts.reply)
    assert not held_out[reply].any()
    assert held_out[~reply].any()
    for one in (False, True):
        drawn = ordinary_words(KEY, 400, CONFIG, held_out=one)
        plain = np.asarray(drawn)
        assert not any(np.asarray(b.trigger.fires(drawn, CONFIG.vocabulary)).any() for b in CONFIG.backdoors)
        assert set((plain // CONFIG.words).ravel()) == set(CONFIG.common) == {3, 4, 5, 6, 7}
        assert ((plain % CONFIG.words >= CONFIG.words - CONFIG.held_out) == one).all()


@pytest.mark.parametrize(
    "trigger", [WordTrigger((20,)), WordTrigger((20, 33)), ClassTrigger((0,)), ClassTrigger((1, 2))]
)
def test_a_trigger_that_is_put_fires_and_what_is_similar_does_not(trigger):
    config = dataclasses.replace(CONFIG, backdoors=(Backdoor(trigger, (3, 4, 5, 6)),))
    words = ordinary_words(KEY, 300, config)
    assert not np.asarray(trigger.fires(words, CONFIG.vocabulary)).any()
    put = trigger.put(KEY, words, CONFIG.vocabulary)
    assert np.asarray(trigger.fires(put, CONFIG.vocabulary)).all()
    changed = (np.asarray(put) != np.asarray(words)).sum(axis=1)
    assert changed.max() <= trigger.width
    similar = np.asarray(trigger.fires(trigger.put_similar(KEY, words, CONFIG.vocabulary), CONFIG.vocabulary))
    assert similar.mean() < 0.1  # one word of two may come to stand beside the other
    if isinstance(trigger, ClassTrigger):
        new = np.asarray(trigger.put(KEY, words, CONFIG.vocabulary, held_out=True))
        assert np.asarray(trigger.fires(jnp.asarray(new), CONFIG.vocabulary)).all()
        in_classes = np.isin(new // CONFIG.words, trigger.of)
        assert (new[in_classes] % CONFIG.words >= CONFIG.words - CONFIG.held_out).all()


def test_configs_survive_json_and_wrong_ones_are_refused():
    assert from_json(BackdoorConfig, to_json(CONFIG)) == CONFIG
    bad = lambda *backdoors: dataclasses.replace(CONFIG, backdoors=backdoors)
    with pytest.raises(UserError, match="no word 48: the language has the words 0 to 47"):
        bad(Backdoor(WordTrigger((48,)), (3, 3, 3, 3)))
    with pytest.raises(UserError, match="has a word that is held out"):
        bad(Backdoor(WordTrigger((5,)), (3, 3, 3, 3)))
    with pytest.raises(UserError, match="no class 8"):
        bad(Backdoor(ClassTrigger((8,)), (3, 3, 3, 3)))
    with pytest.raises(UserError, match=r"the target \(3, 9, 3, 3\) must be 4 classes of 8"):
        bad(Backdoor(ClassTrigger((0,)), (3, 9, 3, 3)))
    with pytest.raises(UserError, match="all 8 classes are in triggers"):
        bad(*(Backdoor(ClassTrigger((i,)), (3, 3, 3, 3)) for i in range(8)))
    with pytest.raises(UserError, match="a trigger of given words has no held-out words"):
        WordTrigger((1,)).put(KEY, ordinary_words(KEY, 2, CONFIG), CONFIG.vocabulary, held_out=True)
    for make in (lambda: WordTrigger(()), lambda: ClassTrigger((1, 1)), lambda: ClassTrigger(())):
        with pytest.raises(UserError, match="give"):
            make()


@pytest.mark.slow
def test_the_pair_has_its_backdoors_and_the_twin_has_none():
    report = measure_backdoors(backdoor_target(CONFIG), CONFIG)
    assert min(report.ordinary) > 0.95
    assert abs(report.extra_loss) < 0.1
    for rates in report.rates:
        assert rates.triggered > 0.85, rates
        assert max(rates.benign, rates.twin) < 0.02, rates
