"""The language of causal models: values, interventions and interchanges against plain Python; what is refused."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from boolean_task import RIGHT

from jax_interp.circuits.causal_variables import (
    CausalModel,
    Numbers,
    Variable,
    counterfactual_pairs,
    interchange_data,
)
from jax_interp.core.errors import UserError


def in_python(x1, x2, x3, x4, A=None, B=None):
    A = (x1 and x2) if A is None else A
    B = (A or x3) if B is None else B
    return {"x1": x1, "x2": x2, "x3": x3, "x4": x4, "A": A, "B": B, "C": B and x4}


def test_runs_interventions_and_interchanges_of_all_settings():
    settings = RIGHT.all_settings()
    cases = list(itertools.product((False, True), repeat=4))
    runs, fixed = RIGHT.run(settings), RIGHT.intervene(settings, {"A": True})
    for i, case in enumerate(cases):
        assert {name: value[i] for name, value in runs.items()} == in_python(*case)
        assert {name: value[i] for name, value in fixed.items()} == in_python(*case, A=True)
    base, source = (np.array(cases)[list(part)] for part in zip(*itertools.product(range(16), repeat=2)))
    named = lambda rows: {f"x{i + 1}": rows[:, i] for i in range(4)}
    after = RIGHT.interchange(named(base), {"B": named(source)})
    for i in range(256):
        assert after["C"][i] == in_python(*base[i].tolist(), B=in_python(*source[i].tolist())["B"])["C"]


def test_single_values_go_with_arrays():
    values = RIGHT.run({"x1": True, "x2": [True, False], "x3": False, "x4": True})
    assert values["C"].tolist() == [True, False]
    assert values["x1"].tolist() == [True, True]
    assert RIGHT.run({f"x{i}": True for i in (1, 2, 3, 4)})["C"].shape == ()


def test_functions_of_single_values_are_called_once_for_each_combination():
    calls = []

    def name_of(a, b):
        calls.append((a, b))
        return "low" if a + b < 3 else "high"

    model = CausalModel(
        {"a": Variable(range(4)), "b": Variable(range(3)), "out": Variable(("low", "high"), name_of, elementwise=True)},
        "out",
    )
    settings = model.sample(1000)
    found = model.run(settings)["out"]
    assert found.tolist() == ["low" if a + b < 3 else "high" for a, b in zip(settings["a"], settings["b"])]
    assert len(calls) == len(set(calls)) == 12


def test_a_million_settings_are_quick():
    start = time.monotonic()
    model = CausalModel(
        {"low": Variable(Numbers(0, 5)), "high": Variable(Numbers(5, 10)), "price": Variable(Numbers(0, 10)),
         "left": Variable((False, True), lambda price, low: price >= low),
         "right": Variable((False, True), lambda price, high: price <= high),
         "answer": Variable((False, True), lambda left, right: left & right)}, "answer",
    )  # fmt: skip
    pairs = counterfactual_pairs(model, "left", 1_000_000, changed=0.5)
    assert len(pairs) == 1_000_000
    assert pairs.changed.mean() == 0.5
    assert time.monotonic() - start < 20  # about two seconds alone on a machine


@pytest.mark.parametrize("changed", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_quotas_of_pairs(changed, balanced):
    pairs = counterfactual_pairs(RIGHT, ["A", "B"], 501, changed=changed, balanced=balanced, seed=1)
    if changed is not None:
        assert abs(pairs.changed.sum() - changed * 501) <= 0.5
    if balanced:
        assert abs(pairs.label.sum() - 250.5) <= 0.5
    after = RIGHT.interchange(pairs.base, dict(zip(pairs.variables, pairs.sources)))
    np.testing.assert_array_equal(after["C"], pairs.label)
    np.testing.assert_array_equal(RIGHT.run(pairs.base)["C"], pairs.before)


def test_pairs_of_given_settings_that_a_filter_keeps():
    settings = {name: value[::2] for name, value in RIGHT.all_settings().items()}
    pairs = counterfactual_pairs(
        RIGHT, "A", 300, settings=settings, keep=lambda base, sources: base["A"] != sources[0]["A"]
    )
    assert not pairs.base["x4"].any()
    assert not pairs.sources[0]["x4"].any()
    assert (RIGHT.run(pairs.base)["A"] != RIGHT.run(pairs.sources[0])["A"]).all()
    with pytest.raises(UserError, match=r"no pairs.* changed=True"):
        counterfactual_pairs(RIGHT, "A", 300, settings=settings, changed=1.0)  # without x4, C is false


BIT = (False, True)
INPUT = Variable(BIT)
REFUSED = {
    "cycle": ({"a": Variable(BIT, lambda b: b), "b": Variable(BIT, lambda a: a)}, "a", "cycle"),
    "parent": ({"a": INPUT, "b": Variable(BIT, lambda aa: aa)}, "b", "'aa'.*did you mean 'a'"),
    "output": ({"a": INPUT, "b": Variable(BIT, lambda a: a)}, "c", "'c'"),
    "output input": ({"a": INPUT, "b": Variable(BIT, lambda a: a)}, "a", "is an input"),
    "empty": ({"a": Variable(()), "b": Variable(BIT, lambda a: a)}, "b", "at least one"),
    "mixed": ({"a": Variable((1, "x")), "b": Variable(BIT, lambda a: a)}, "b", "or texts"),
    "repeated": ({"a": Variable((0, 1, 1)), "b": Variable(BIT, lambda a: a)}, "b", "twice"),
    "text": ({"a": Variable("xyz"), "b": Variable(BIT, lambda a: a)}, "b", "a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_are_refused(case):
    variables, output, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        CausalModel(variables, output)


def test_settings_that_are_refused():
    model = CausalModel({"a": Variable(range(3)), "x": Variable(Numbers(0)), "b": Variable(range(3), lambda a: a + 1),
                         "c": Variable(BIT, lambda b, x: b > x and True)}, "c")  # fmt: skip
    for setting, message in (
        ({"a": 1}, r"no value for the inputs \['x'\]"),
        ({"a": 1, "x": 1, "y": 2}, "no variable 'y'"),
        ({"a": 1, "x": 1, "b": 2}, "are computed"),
        ({"a": 3, "x": 1}, r"'a' cannot be \[3\]"),
        ({"a": np.nan, "x": 1}, r"'a' cannot be \[nan\]"),
        ({"a": 1, "x": np.inf}, "'x' cannot be"),
        ({"a": 1, "x": -1}, "'x' cannot be"),
        ({"a": "1", "x": 1}, "takes values such as"),
        ({"a": 2, "x": 1}, r"'b' cannot be \[3\]"),
        ({"a": [0, 1], "x": [1.0, 2.0, 3.0]}, "one length"),
        ({"a": [0, 1], "x": 1.0}, "elementwise=True"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            model.run(setting)
    with pytest.raises(UserError, match="any number"):
        model.sample(3)
    with pytest.raises(UserError, match="infinitely many"):
        model.all_settings()
    with pytest.raises(UserError, match="the lengths"):
        counterfactual_pairs(RIGHT, "A", 10, settings={"x1": [True] * 4, "x2": [True] * 3, "x3": False, "x4": True})
    with pytest.raises(UserError, match="named twice"):
        counterfactual_pairs(RIGHT, ["A", ("A", "B")], 10)


def test_encodings_that_are_refused():
    pairs = counterfactual_pairs(RIGHT, "A", 4)
    good = lambda setting: np.zeros((len(setting["x1"]), 3), int)
    for encode, options, message in (
        (lambda s: [[1] * (2 + i) for i in range(4)], {}, "prompt 0 has.*prompt 1 has"),
        (lambda s: np.zeros((3, 2), int), {}, "one for each entry"),
        (lambda s: np.full((4, 2), "a"), {}, "return tokens"),
        (good, {"positions": {"p": 3}}, "outside prompts of 3"),
        (good, {"positions": {"p": lambda s: s["x1"]}}, "one integer"),
        (good, {"read_at": -4}, "outside prompts"),
        (good, {"choices": [0]}, "lacks some"),
    ):
        with pytest.raises(UserError, match=message):
            interchange_data(pairs, encode, {False: 0, True: 1}, **options)
    with pytest.raises(UserError, match="no class for"):
        interchange_data(pairs, good, {"no": 0})
