"""Automatic interpretation: a judge that knows the true features, scripted judges, and answers kept on disk."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dashboards import collect
from jax_interp.dashboards.features import Latents
from jax_interp.dashboards.interpretation import (
    Answers,
    KnownFeaturesJudge,
    MalformedAnswerError,
    Protocol,
    Report,
    cohens_kappa,
    gather_examples,
    interpret,
    interpret_dictionary,
    judge_agreement,
    one_by_one,
    scorer_agreement,
)
from jax_interp.dashboards.interpretation.drawn_windows import DrawnWindows
from jax_interp.dashboards.interpretation.figures import summarise
from jax_interp.dashboards.interpretation.judge import Shown
from jax_interp.dashboards.interpretation.requests import (
    as_text,
    detection_request,
    read_explanation,
    read_numbers,
    read_values,
)
from jax_interp.dictionaries.evaluation import controls
from jax_interp.dictionaries.evaluation.benchmarks.baselines import compare
from jax_interp.toys.synthetic import as_model, sharkey

N = 10
PROTOCOL = Protocol(
    top_explain=5,
    top_score=2,
    weighted_explain=3,
    weighted_score=3,
    random_score=8,
    before=2,
    after=2,
    scorers=("detection", "fuzzing", "simulation"),
    latents=N,
)


@functools.cache
def world():
    """(model, its true features as a dictionary, a text of 3,000 rows in sequences of five)"""
    known = sharkey(jax.random.key(0), d=12, n_features=N, active=0.3, decay=1.0)
    model = as_model(known, jax.random.key(1))[0]
    tokens = np.arange(3000, dtype=np.int32).reshape(-1, 300, 5)
    batches = [(one, np.ones(one.shape, bool)) for one in tokens]
    return model, controls.oracle(known.directions, known.bias, 0.01), batches


@functools.cache
def judged() -> Report:
    model, oracle, batches = world()
    judge = KnownFeaturesJudge(model)
    return interpret(Latents(oracle, None, "x"), model, batches, judge.strings, judge, range(N), PROTOCOL)


def again(judge, explanations=None, **changes) -> Report:
    model, oracle, batches = world()
    protocol = dataclasses.replace(PROTOCOL, **changes)
    scores = Latents(oracle, None, "x")
    return interpret(scores, model, batches, KnownFeaturesJudge.strings, judge, range(N), protocol, explanations)


def test_a_perfect_judge_explains_true_features_perfectly():
    report = judged()
    assert report.explanations == {i: f"feature {i}" for i in range(N)}
    assert not report.skipped
    for scorer in ("detection", "fuzzing"):
        figures = report.figures[scorer]
        assert (figures.units, figures.abstained) == (N, 0)
        assert figures.score.value == figures.balanced.value == 1
    assert report.figures["simulation"].score.value == pytest.approx(1, abs=1e-4)
    assert report.figures["fuzzing"].chance == 0.5


def test_explanations_of_other_units_are_at_chance():
    """The level of chance: each unit with the explanation of the next one."""
    report = again(KnownFeaturesJudge(world()[0]), {i: f"feature {(i + 1) % N}" for i in range(N)})
    for scorer in ("detection", "fuzzing"):
        balanced = report.figures[scorer].balanced
        assert balanced.low < 0.55
        assert abs(balanced.value - 0.5) < 0.12
    assert abs(report.figures["simulation"].score.value) < 0.15
    kappa = judge_agreement(report, again(KnownFeaturesJudge(world()[0]), report.explanations))
    assert kappa == {"detection": 1, "fuzzing": 1}
    with pytest.raises(UserError, match="two explanations"):
        judge_agreement(report, judged())


def test_a_random_dictionary_stands_beside_the_true_one():
    """And it is far above chance even so: a random latent is on for a feature that lies near it."""
    model, oracle, batches = world()
    rows = [model(jnp.asarray(tokens)).reshape(-1, 12) for tokens, _ in batches[:1]]
    judge = KnownFeaturesJudge(model)
    protocol = dataclasses.replace(PROTOCOL, scorers=("detection",), latents=6)
    found = interpret_dictionary(
        model, "x", compare(jax.random.key(2), oracle, rows), batches, judge.strings, judge, protocol
    )
    score, balanced = found.measures()
    assert (score.name, balanced.name) == ("detection", "detection, balanced")
    assert balanced.estimates["dictionary"].value == 1
    assert 0.5 < balanced.estimates["random"].value < 1
    assert [len(report.units) + len(report.skipped) for report in found.reports.values()] == [6, 6]
    with pytest.raises(UserError, match="no coders"):
        interpret_dictionary(
            model, "x", compare(jax.random.key(2), oracle, rows), batches, judge.strings, judge, protocol, ["shuffled"]
        )


def test_examples_are_what_the_protocol_says():
    model, oracle, batches = world()
    found, skipped = gather_examples(
        Latents(oracle, None, "x"), model, batches, KnownFeaturesJudge.strings, PROTOCOL, range(N)
    )
    assert not skipped
    z = np.asarray(oracle.encode(model(jnp.arange(3000)[None])[0]))
    for one in found:
        assert (len(one.explain), len(one.score)) == (8, 13)
        largest = z[:, one.unit].max()
        assert one.largest == pytest.approx(largest, rel=1e-5)
        rows = [tuple(map(int, example.tokens)) for example in (*one.explain, *one.score)]
        flat = [row for tokens in rows for row in tokens]
        assert len(set(flat)) == len(flat), "windows overlap"
        for example, tokens in zip((*one.explain, *one.score), rows):
            np.testing.assert_allclose(example.activations, z[list(tokens), one.unit], atol=1e-5)
            assert example.active == tuple((z[list(tokens), one.unit] > 0.01 * largest).tolist())
        peaks = [max(example.activations) for example in one.explain]
        assert peaks == sorted(peaks, reverse=True)
        best = np.sort(z[:, one.unit].reshape(-1, 5).max(1))[-7:]
        assert sum(np.isclose(max(e.activations), best, atol=1e-5).any() for e in (*one.explain, *one.score)) >= 7


def test_draws_do_not_depend_on_batches_and_follow_the_weights():
    """Two positions with weights 3 : 1; the first is drawn in 3/4 of the texts."""
    units = 400
    scores = lambda _, tokens: jnp.broadcast_to((tokens.reshape(-1, 1) % 4).astype(jnp.float32), (tokens.size, units))
    rng = np.random.default_rng(0)
    tokens = np.concatenate([[[3, 0, 0], [1, 0, 0]], 4 * rng.integers(1, 99, (6, 3))]).astype(np.int32)
    keep = np.ones(tokens.shape, bool)
    first = DrawnWindows(jax.random.key(0), k=1, before=1, after=1, by_score=True)
    drawn = collect(scores, None, [(tokens, keep)], {"": first})[""]
    assert np.mean(drawn.peak == 3) == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / units))
    np.testing.assert_array_equal(np.where(drawn.peak == 3, 3, 1), drawn.peak)
    parts = [(tokens[i : i + 2], keep[i : i + 2]) for i in (0, 2, 4, 6)]
    np.testing.assert_array_equal(collect(scores, None, parts, {"": first})[""].tokens, drawn.tokens)
    uniform = DrawnWindows(jax.random.key(0), k=1, before=0, after=0)
    keep[2:] = False
    counts = np.bincount(collect(scores, None, [(tokens, keep)], {"": uniform})[""].peak[:, 0].astype(int), minlength=4)
    assert (counts > units * np.array([4, 1, 0, 1]) / 6 - 40).all()
    assert counts.sum() == units


def test_answers_are_asked_once_and_survive_a_judge_that_fails(tmp_path):
    seen: list[str] = []

    def ask(system, prompt):
        if len(seen) == 5:
            raise ConnectionError("the line is dead")
        seen.append(prompt)
        return prompt[-6:]

    requests = [detection_request(str(i % 7), [Shown(("a", "b"))]) for i in range(14)]
    make = lambda **options: Answers(one_by_one(ask), name="one", directory=tmp_path / "kept", batch=2, **options)
    with pytest.raises(ConnectionError):
        make()(requests)
    assert len(seen) == 5
    failed, seen[:] = list(seen), []
    answers = make()
    assert len(answers(requests)) == 14
    assert sorted(set(failed[:4]) | set(seen)) == sorted({r.prompt for r in requests})
    assert answers.asked == 3  # seven different requests, four of them kept
    assert answers(requests) == answers(requests)
    assert answers.asked == 3
    seen[:] = []
    other = Answers(one_by_one(ask), name="two", directory=tmp_path / "kept")
    with pytest.raises(ConnectionError):
        other(requests)  # another judge: nothing is reused


@pytest.mark.parametrize("wrong", [lambda r: "1", lambda r: ["1"] * (len(r) + 1), lambda r: [1 for _ in r]])
def test_a_judge_that_breaks_its_contract_is_refused(wrong):
    with pytest.raises(UserError, match="judge 'x'"):
        Answers(wrong, "x")([detection_request("a", [Shown(("a",))])] * 2 + [detection_request("b", [Shown(("a",))])])


def test_a_damaged_answer_on_disk_is_refused(tmp_path):
    request = detection_request("a", [Shown(("a",))])
    Answers(lambda r: ["None"], "x", tmp_path)([request])
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace("None", "1"))
    with pytest.raises(UserError, match="changed"):
        Answers(lambda r: ["None"], "x", tmp_path)([request])


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("None", []),
        (" none. ", []),
        ("2", [2]),
        ("1, 3", [1, 3]),
        ("1 and 3.", [1, 3]),
        ('"1,2,3"', [1, 2, 3]),
        ("2, 2", [2]),
    ],
)
def test_lists_of_examples_are_read(answer, wanted):
    assert read_numbers(answer, 3) == tuple(i in wanted for i in (1, 2, 3))


@pytest.mark.parametrize("answer", ["", "0", "4", "-1", "yes", "1; 2", "1.5", "all", "1, 99999999999999999999", "²"])
def test_other_lists_are_malformed(answer):
    with pytest.raises(MalformedAnswerError, match="numbers from 1 to 3"):
        read_numbers(answer, 3)


def test_simulated_values_are_read():
    assert read_values("1: 0\n\n 2:10 \n3: 4.5\n", 3) == (0, 10, 4.5)
    for answer in ("", "1: 0\n2: 3", "1: 0\n1: 0\n2: 1", "1: 0\n2: 11\n3: 0", "1: x\n2: 0\n3: 0", "1: nan\n2: 0\n3: 0"):
        with pytest.raises(MalformedAnswerError):
            read_values(answer, 3)
    assert read_explanation("This neuron activates on\n the word 'if'. ") == "the word 'if'"
    with pytest.raises(MalformedAnswerError):
        read_explanation(" \n")


def test_a_malformed_answer_is_an_error_by_unit_or_an_abstention():
    known = KnownFeaturesJudge(world()[0])
    vague = lambda requests: [
        "perhaps" if r.kind == "detection" and r.explanation == "feature 3" else a
        for r, a in zip(requests, known(requests))
    ]
    with pytest.raises(MalformedAnswerError, match="unit 3, detection"):
        again(vague)
    report = again(vague, malformed="abstain")
    assert (report.figures["detection"].units, report.figures["detection"].abstained) == (N - 1, 1)
    assert "perhaps" in report.units[3].malformed["detection"]
    assert report.figures["fuzzing"].abstained == 0
    silent = lambda requests: ["" if r.kind == "explanation" else "None" for r in requests]
    nothing = again(silent, malformed="abstain")
    assert np.isnan(nothing.figures["detection"].score.value)
    assert nothing.figures["detection"].abstained == N


def test_a_constant_judge_is_at_chance():
    """Detection: "none" is right for the inactive examples; balanced, it is at 0.5. Simulation: 0."""
    constant = {"explanation": "anything", "detection": "None", "fuzzing": "None"}
    says = lambda r: constant.get(r.kind) or "\n".join(f"{i}: 3" for i in range(1, len(r.examples[0].tokens) + 1))
    report = again(lambda requests: [says(r) for r in requests])
    share = np.mean([np.mean(unit.truth["detection"]) for unit in report.units])
    assert report.figures["detection"].score.value == pytest.approx(1 - share)
    assert report.figures["detection"].chance == pytest.approx(max(share, 1 - share))
    assert report.figures["detection"].balanced.value == report.figures["fuzzing"].score.value == 0.5
    assert report.figures["simulation"].score.value == 0


def test_a_unit_that_is_hardly_on_is_skipped_with_the_reason():
    model, oracle, batches = world()
    oracle = dataclasses.replace(oracle, W_enc=oracle.W_enc.at[:, 2].set(0))
    report = interpret(
        Latents(oracle, None, "x"), model, batches, KnownFeaturesJudge.strings, KnownFeaturesJudge(model), range(N),
        dataclasses.replace(PROTOCOL, scorers=("detection",)),
    )  # fmt: skip
    assert list(report.skipped) == [2]
    assert "0 of 7 separate top windows" in report.skipped[2]
    assert len(report.units) == N - 1


def test_kappa_and_agreement_by_hand():
    # 20 of 25 agree; p = 15/25, q = 14/25: chance = .6 · .56 + .4 · .44
    a = [1] * 12 + [1] * 3 + [0] * 2 + [0] * 8
    b = [1] * 12 + [0] * 3 + [1] * 2 + [0] * 8
    chance = 0.6 * 0.56 + 0.4 * 0.44
    assert cohens_kappa(a, b) == pytest.approx((0.8 - chance) / (1 - chance))
    assert cohens_kappa(a, a) == 1
    assert np.isnan(cohens_kappa([1, 1], [1, 1]))
    with pytest.raises(UserError, match="kappa of"):
        cohens_kappa([1], [])
    units = [dataclasses.replace(u, scores={"detection": i, "fuzzing": -i}) for i, u in enumerate(judged().units)]
    agreement = scorer_agreement(dataclasses.replace(judged(), units=tuple(units)))["detection", "fuzzing"]
    assert agreement.rank_correlation == pytest.approx(-1)
    assert agreement.kappa == pytest.approx(-1)


def test_intervals_are_over_units():
    """One unit all right, one all wrong: the mean is between them, and the interval holds both."""
    figures = summarise([[1, 1, 0, 0]] * 2, [[1, 1, 0, 0], [0, 0, 1, 1]], abstained=0)
    assert figures.score.value == figures.balanced.value == 0.5
    assert (figures.score.low, figures.score.high) == (0, 1) == (figures.balanced.low, figures.balanced.high)


def test_activations_that_are_not_finite_are_refused():
    model, oracle, batches = world()
    broken = dataclasses.replace(oracle, b_enc=oracle.b_enc.at[1].set(jnp.inf))
    with pytest.raises(UserError, match="NaN or infinite"):
        gather_examples(Latents(broken, None, "x"), model, batches, KnownFeaturesJudge.strings, PROTOCOL, range(N))


def test_texts_show_marks_and_lines():
    assert as_text(Shown((" a", "\n", "b"), (True, False, True))) == "<< a>>↵<<b>>"


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_explain": 0},
        {"threshold": 1.0},
        {"scorers": ("guess",)},
        {"top_score": 0, "weighted_score": 0},
        {"malformed": "ignore"},
    ],
)
def test_impossible_protocols_are_refused(wrong):
    with pytest.raises(UserError):
        Protocol(**wrong)
