"""Monitors of a trained model: each score against its definition, and the evaluation of all of them from end to end."""

from __future__ import annotations

import dataclasses
import json
from functools import cached_property

import jax
import numpy as np
import pytest
import toy

from jax_interp import UserError, load
from jax_interp.probes import All, LabelledTokens, MassMean, Span, fit_probes, gather, gather_tokens, tokenized
from jax_interp.probes.aggregators import Max
from jax_interp.probes.labelled_chats import from_chats
from jax_interp.probes.monitors import (
    AnswerMonitor,
    Cost,
    FunctionMonitor,
    MonitorOptions,
    ProbeMonitor,
    Surprise,
    answer_monitor,
    bag_of_words,
    cascade,
    evaluate_monitors,
    forward_cost,
    probe_cost,
)

SITE = "blocks.2.resid_post"


class Setting:
    """Functions that read (benign) or write (suspicious) a file, in four sets with different names."""

    def __init__(self):
        self.model, tokenizer = load("stdlib-small")
        assert tokenizer is not None
        self.tokenizer = tokenizer

    def texts(self, which, benign, suspicious, seed):
        rng = np.random.default_rng(seed)
        pick = lambda words: words[int(rng.integers(len(words)))]
        nouns = ("path", "name", "target", "source", "entry", "record", "folder", "handle")
        reads, writes = ("read", "load", "get", "open"), ("write", "remove", "delete", "unlink")
        made = []
        for row in range(benign + suspicious):
            verb = pick(writes if (row >= benign) != (rng.random() < 0.1) else reads)
            made.append(f"def {verb}_{which}{row}({pick(nouns)}, {pick(nouns)}):\n    return os.{verb}({pick(nouns)})")
        labels = ["benign"] * benign + ["suspicious"] * suspicious
        return tokenized(self.tokenizer, made, labels, name=which)

    @cached_property
    def sets(self):
        control = self.texts("c", 121, 1, 3)
        return {
            "train": self.texts("a", 40, 40, 0),
            "validation": self.texts("v", 40, 40, 1),
            "test": self.texts("t", 40, 40, 2),
            "control": control.take(control.labels == 0),
        }

    @cached_property
    def probe(self):
        vectors = gather(self.model, self.sets["train"], SITE, rules=self.rule)
        return fit_probes(MassMean(), vectors).probe()

    @property
    def rule(self):
        return ProbeMonitor.__dataclass_fields__["rule"].default

    @cached_property
    def monitors(self):
        probe = ProbeMonitor(self.model, self.probe, SITE, name="probe", cost=probe_cost(self.probe), batch=128)
        surprise = Surprise(self.model, cost=forward_cost(self.model), batch=128)
        return [probe, surprise, bag_of_words(self.sets["train"])]


@pytest.fixture(scope="module")
def setting():
    return Setting()


@pytest.mark.slow
def test_a_probe_gives_the_score_of_the_vectors_that_it_was_fitted_on(setting):
    data = setting.sets["test"]
    vectors = gather(setting.model, data, SITE, rules=setting.rule)
    expected = setting.probe.score(vectors.values[SITE][0])
    monitor = dataclasses.replace(setting.monitors[0], batch=13)
    np.testing.assert_allclose(monitor.scores(data), expected, rtol=1e-3, atol=1e-3)
    some = np.array([70, 3, 5])
    np.testing.assert_allclose(monitor.scores(data.take(some)), np.asarray(expected)[some], rtol=1e-3, atol=1e-3)


def test_an_aggregator_pools_the_scores_of_tokens(setting):
    data = setting.sets["test"].take(np.arange(6))
    x = np.asarray(gather_tokens(setting.model, data, SITE).values[SITE])
    scores = np.where(data.readable, setting.probe.token_scores(x), -np.inf)
    found = dataclasses.replace(setting.monitors[0], aggregator=Max()).scores(data)
    np.testing.assert_allclose(found, scores.max(axis=1), rtol=1e-3, atol=1e-3)


def test_a_model_without_a_mask_gets_texts_of_one_length_at_a_time():
    model, (tokens, keep) = toy.toy(), toy.batch_at(0)
    tokens, mask = np.asarray(tokens), np.asarray(keep).copy()
    mask[:, 0] = True
    data = LabelledTokens("toy", tokens, mask, np.asarray(keep), np.zeros(8, np.int32), ("a", "b"))
    assert not mask.all()
    found = Surprise(model, rule=All()).scores(data)
    for row in (0, 3):
        own = tokens[row][mask[row]]
        log_p = jax.nn.log_softmax(model(own[None])[0])
        assert found[row] == pytest.approx(-np.mean([log_p[i, t] for i, t in enumerate(own[1:])]), rel=1e-4)


def test_surprise_is_the_loss_of_the_text(setting):
    data = setting.sets["test"].take(np.arange(5))
    found = Surprise(setting.model).scores(data)
    for row in range(2):
        tokens = data.tokens[row][data.mask[row]]
        log_p = jax.nn.log_softmax(setting.model(tokens[None])[0])
        expected = -np.mean([log_p[i, token] for i, token in enumerate(tokens[1:])])
        assert found[row] == pytest.approx(expected, rel=1e-3)


def test_an_answer_is_the_difference_of_two_logits_after_the_question(setting):
    monitor = answer_monitor(setting.model, setting.tokenizer, "\n\ndef", yes=" write", no=" read")
    data = setting.sets["test"].take(np.arange(5))
    question = setting.tokenizer.encode("\n\ndef", bos=False)
    yes, no = (setting.tokenizer.encode(text, bos=False)[0] for text in (" write", " read"))
    found = monitor.scores(data)
    assert len(set(data.mask.sum(axis=1))) > 1  # there is padding
    for row in range(2):
        tokens = np.append(data.tokens[row][data.mask[row]], question)
        last = setting.model(tokens[None])[0, -1]
        assert found[row] == pytest.approx(float(last[yes] - last[no]), abs=1e-3)
    assert isinstance(monitor, AnswerMonitor)
    assert monitor.costs(data)[0] > forward_cost(setting.model).of(data)[0]
    with pytest.raises(UserError, match="tokens: give one"):
        answer_monitor(setting.model, setting.tokenizer, "?", yes=" write and more")
    with pytest.raises(UserError, match="both answers"):
        answer_monitor(setting.model, setting.tokenizer, "?", yes=" read", no=" read")


def test_only_the_tokens_of_a_role_count(setting):
    turns = lambda user, assistant: [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    chats = [turns("import os", "return path"), turns("class Path: pass", "return path")]
    data = from_chats(setting.tokenizer, chats, ["no", "yes"])
    words = bag_of_words(setting.sets["train"])
    of_assistant = dataclasses.replace(words, rule=Span("assistant")).scores(data)
    assert of_assistant[0] == of_assistant[1]
    assert words.scores(data)[0] != words.scores(data)[1]
    x = np.asarray(gather(setting.model, data, SITE, Span("assistant")).values[SITE][0])
    monitor = dataclasses.replace(setting.monitors[0], rule=Span("assistant"))
    np.testing.assert_allclose(monitor.scores(data), setting.probe.score(x), rtol=1e-3, atol=1e-3)


def test_costs_add_up():
    total = Cost(1.0, 2.0, "s") + Cost(0.5, 0.25, "s")
    assert (total.per_example, total.per_token) == (1.5, 2.25)
    with pytest.raises(UserError, match="one unit"):
        _ = Cost(unit="s") + Cost(unit="$")
    with pytest.raises(UserError, match="not negative"):
        Cost(per_token=-1.0)


def test_a_score_that_is_not_a_number_is_refused(setting):
    data = setting.sets["test"]
    with pytest.raises(UserError, match="score nan to example 3"):
        FunctionMonitor("f", lambda data: np.where(np.arange(len(data)) == 3, np.nan, 0.0)).scores(data)
    with pytest.raises(UserError, match="scores of shape"):
        FunctionMonitor("f", lambda data: np.zeros(2)).scores(data)
    with pytest.raises(UserError, match="no example"):
        FunctionMonitor("f", lambda data: np.zeros(0)).scores(data.take(np.zeros(0, int)))


@pytest.fixture(scope="module")
def report(setting):
    sets = {name: setting.sets[name] for name in ("validation", "test", "control")}
    return evaluate_monitors(setting.monitors, **sets, options=MonitorOptions(fprs=(0.05,), draws=100))


def test_the_report_holds_every_monitor_combination_and_cascade(report, setting):
    names = [monitor.name for monitor in setting.monitors]
    assert [of.name for of in report.monitors] == names
    assert [of.name for of in report.combinations] == ["LikelihoodRatio", "ZScoreMean", "RankMean", "Stacking"]
    assert {(of.cheap, of.expensive) for of in report.cascades} == {
        ("probe", "surprise"), ("bag of words", "surprise"), ("bag of words", "probe"),
    }  # fmt: skip
    assert {(of.monitor, of.baseline) for of in report.uplifts if of.monitor == "probe"} == {
        ("probe", "surprise"), ("probe", "bag of words"),
    }  # fmt: skip
    assert report.figures("probe").auroc.value > 0.8
    assert report.sizes == {"validation": (40, 40), "test": (40, 40), "control": (0, 121)}
    for curve in report.cascades:
        on_validation = [of.chosen.recall for of in curve.figures]
        assert (np.diff(on_validation) >= 0).all()
        assert all(of.chosen.cost <= of.budget * (1 + 1e-9) for of in curve.figures)
    assert any("few for a rate" in caution for caution in report.cautions)


def test_the_report_is_json_and_text(report):
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert values["monitors"][0]["recall"][0]["fpr"] == 0.05
    text = "\n".join(report.lines())
    assert all(of.name in text for of in (*report.monitors, *report.combinations, *report.cascades))
    assert set(report.cost_curves()) >= {"probe", "bag of words → surprise"}
    with pytest.raises(UserError, match="no monitor 'other'"):
        report.figures("other")


def test_a_cascade_runs_the_expensive_monitor_only_where_it_is_asked(report, setting):
    asked = []
    expensive = FunctionMonitor("function", lambda data: asked.append(len(data)) or setting.monitors[0].scores(data),
                                Cost(100.0))  # fmt: skip
    words, test = setting.monitors[2], setting.sets["test"]
    given = {"validation": setting.sets["validation"], "control": setting.sets["control"], "fpr": 0.05}
    alone = cascade(words, expensive, words.costs(given["control"]).mean(), **given)
    asked.clear()
    decided = alone.decide(test)
    assert not asked
    assert not decided.escalated.any()
    some = cascade(words, expensive, 60.0, **given)
    asked.clear()
    decided = some.decide(test)
    assert asked == [decided.escalated.sum()]
    assert 0 < decided.escalated.sum() < len(test)
    first, second = words.scores(test), setting.monitors[0].scores(test)
    np.testing.assert_array_equal(decided.alarm, some.chosen.thresholds.alarm(first, second))
    np.testing.assert_allclose(decided.cost, words.costs(test) + 100.0 * decided.escalated)
    figures = some.evaluate(test)
    assert figures.recall.value == decided.alarm[test.labels == 1].mean()
    assert figures.false_positives.value == decided.alarm[test.labels == 0].mean()


def test_what_cannot_be_compared_is_refused(setting):
    sets = {name: setting.sets[name] for name in ("validation", "test", "control")}
    with pytest.raises(UserError, match="different names"):
        evaluate_monitors([setting.monitors[0]] * 2, **sets)
    with pytest.raises(UserError, match="are in the validation set and in the test set"):
        evaluate_monitors(setting.monitors[2:], **(sets | {"test": sets["validation"]}))
    with pytest.raises(UserError, match="one class only"):
        evaluate_monitors(setting.monitors[2:], **(sets | {"test": sets["test"].take(np.arange(40))}))
    with pytest.raises(UserError, match="121 control examples cannot show"):
        evaluate_monitors(setting.monitors[2:], **sets, options=MonitorOptions(fprs=(0.001,)))
    dollars = FunctionMonitor("judge", lambda data: np.arange(len(data)), Cost(1.0, unit="$"))
    with pytest.raises(UserError, match="one unit"):
        evaluate_monitors([*setting.monitors, dollars], **sets)
