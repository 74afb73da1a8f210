"""Tasks: each prompt is aligned with its corrupted one, positions hold what their names say, and metrics are right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jax_interp import load
from jax_interp.circuits import LogitDifference, baseline
from jax_interp.circuits.tasks import (
    IOI,
    TASKS,
    Attribute,
    Docstring,
    GreaterThan,
    Induction,
    ModularAddition,
    find_task,
    spread,
)
from jax_interp.circuits.tasks.ioi import read_lists
from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.data.tokenizer import load_tokenizer

IOI_CORRUPTIONS = ("ABC", "S2→IO", "S2→random", "IO→random", "S1→random", "S→random", "IO↔S1")


@pytest.fixture(scope="module")
def gpt2(test_data):
    return load_tokenizer(test_data / "tokenizers" / "gpt2" / "tokenizer.json")


def words_at(tokenizer, examples, name, clean=True):
    tokens = np.asarray(examples.contrast.clean if clean else examples.contrast.corrupted)
    return tokenizer.texts(tokens[np.arange(len(examples)), examples.position(name)].tolist())


@pytest.mark.parametrize("name", sorted(kind.name for kind in TASKS))
def test_pairs_are_aligned_and_seeds_repeat(gpt2, name):
    task = find_task(name)
    one, again, other = (task.sample(gpt2, 12, seed) for seed in (3, 3, 4))
    assert one.clean == again.clean != other.clean
    clean, corrupted = np.asarray(one.contrast.clean), np.asarray(one.contrast.corrupted)
    assert (clean == np.asarray(again.contrast.clean)).all()
    assert (clean != corrupted).any(axis=1).all()  # every pair differs
    real = np.ones_like(clean, bool) if one.contrast.mask is None else np.asarray(one.contrast.mask)
    assert real[:, -1].all()
    for row, (text, mask) in enumerate(zip(one.clean, real)):
        if name != "induction":  # random ids have no text that is encoded to them again
            assert clean[row][mask].tolist() == gpt2.encode(text, bos=True)
    for positions in one.positions.values():
        assert real[np.arange(12), positions].all()
    assert all(len(labels) == 12 for labels in one.factors.values())
    assert len(one.answers) == len(one) == 12


def test_a_task_is_found_by_its_name():
    assert isinstance(TASKS, Registry)
    with pytest.raises(UserError, match="Did you mean 'induction'"):
        find_task("inducton")
    with pytest.raises(UserError, match="n=0"):
        Induction().sample(load("stdlib-small")[1], 0)


@pytest.mark.parametrize("corruption", IOI_CORRUPTIONS)
@pytest.mark.parametrize("order", ["ABBA", "BABA"])
def test_ioi_names_stand_where_they_should(gpt2, corruption, order):
    examples = IOI(corruption, order).sample(gpt2, 10)
    io, s1, s2 = (words_at(gpt2, examples, name) for name in ("IO", "S1", "S2"))
    assert s1 == s2
    assert all(a != b for a, b in zip(io, s1))
    assert io == gpt2.texts(examples.answers.tolist())
    assert ((examples.position("IO") < examples.position("S1")) == (order == "ABBA")).all()
    assert (examples.position("S1+1") == examples.position("S1") + 1).all()
    other_io, other_s1, other_s2 = (words_at(gpt2, examples, name, clean=False) for name in ("IO", "S1", "S2"))
    kept = {
        "ABC": (False, False, False), "S2→IO": (True, True, False), "S2→random": (True, True, False),
        "IO→random": (False, True, True), "S1→random": (True, False, True), "S→random": (True, False, False),
        "IO↔S1": (False, False, True),
    }[corruption]  # fmt: skip
    pairs = ((io, other_io), (s1, other_s1), (s2, other_s2))
    assert tuple(all(a == b for a, b in zip(*pair)) for pair in pairs) == kept
    if corruption == "ABC":
        assert all(len({a, b, c}) == 3 for a, b, c in zip(other_io, other_s1, other_s2))
    if corruption == "S2→IO":
        assert other_s2 == io
    if corruption == "IO↔S1":
        assert (other_io, other_s1) == (s1, io)


def test_the_published_lists_of_ioi(gpt2, test_data):
    path = test_data / "prompts" / "ioi" / "ioi_lists.json"
    words = read_lists(path)
    assert [len(words[key]) for key in ("names", "ABBA", "BABA", "places", "objects")] == [99, 15, 15, 8, 8]
    given = json.loads(path.read_text())
    encoded = gpt2.encode_batch([f" {name}" for name in given["NAMES"]], bos=False)
    assert all(len(ids) == 1 for ids in encoded)
    examples = IOI(lists=str(path), symmetric=True).sample(gpt2, 60)
    assert set(examples.factors["order"]) == {"ABBA", "BABA"}
    ours = set()
    for text, io, s, order, template, place, thing in zip(
        examples.clean, *(examples.factors[k] for k in ("IO name", "S name", "order", "template", "place", "object"))
    ):
        wanted = given[f"{order}_TEMPLATES"][int(template)]
        for slot, word in (("[A]", io), ("[B]", s), ("[PLACE]", place), ("[OBJECT]", thing)):
            wanted = wanted.replace(slot, word)
        assert text == wanted.removesuffix(f" {io}")
        ours.add((io, s))
    assert all((s, io) in ours for io, s in ours)  # each prompt and its exchanged one


def test_lists_that_are_no_lists_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"NAMES": ["Ann"]}')
    with pytest.raises(UserError, match="ABBA_TEMPLATES"):
        read_lists(tmp_path / "a.json")
    kinds = ("NAMES", "ABBA_TEMPLATES", "BABA_TEMPLATES", "PLACES", "OBJECTS")
    (tmp_path / "b.json").write_text(json.dumps({key: ["[A] and [B] met"] for key in kinds}))
    with pytest.raises(UserError, match=r"\[B\] twice"):
        read_lists(tmp_path / "b.json")
    with pytest.raises(UserError, match="odd"):
        IOI(symmetric=True).sample(load("stdlib-small")[1], 3)
    with pytest.raises(UserError, match="choose from ABC"):
        IOI(corruption="XYZ").sample(load("stdlib-small")[1], 3)


def test_a_tokenizer_that_splits_the_words_is_refused():
    tokenizer = load("stdlib-small")[1]
    for task, what in ((IOI(), "names"), (find_task("pronoun"), "female names"), (GreaterThan(), "00 to 99")):
        with pytest.raises(UserError, match=what):
            task.sample(tokenizer, 4)


def test_greater_than_sums_over_the_years(gpt2):
    examples = GreaterThan().sample(gpt2, 8, seed=1)
    years = [int(text.split("year ")[1][2:4]) for text in examples.clean]
    assert all(text.split("year ")[1][2:4] == "01" for text in examples.corrupted)
    sign = np.asarray(examples.contrast.metric.sign)
    digits = [gpt2.encode(f"{y:02d}", bos=False)[0] for y in range(100)]
    for row, year in zip(sign, years):
        assert row[digits].tolist() == [1.0 if y > year else -1.0 for y in range(100)]
        assert np.count_nonzero(row) == 100
    assert [gpt2.texts([a])[0] for a in examples.answers.tolist()] == [f"{min(y + 1, 99):02d}" for y in years]


def test_the_docstring_answer_is_the_third_parameter(gpt2):
    for corruption in ("all names", "signature", "docstring", "answer"):
        examples = Docstring(corruption).sample(gpt2, 6)
        assert words_at(gpt2, examples, "C_DEF") == gpt2.texts(examples.answers.tolist())
        assert words_at(gpt2, examples, "A_DEF") == words_at(gpt2, examples, "A_DOC")
        same = words_at(gpt2, examples, "C_DEF", clean=False) == words_at(gpt2, examples, "C_DEF")
        assert same == (corruption in ("signature", "docstring"))
        wrong = np.asarray(examples.contrast.metric.others)
        tokens = [set(gpt2.texts(row)) for row in wrong.tolist()]
        assert all(f" {name}" not in row for name, row in zip(examples.factors["answer"], tokens))


def test_the_attribute_of_another_entity_is_another(gpt2):
    examples = Attribute("continent").sample(gpt2, 20)
    metric = examples.contrast.metric
    assert (np.asarray(metric.answer) != np.asarray(metric.other)).all()
    with pytest.raises(UserError, match="there are country, continent, language"):
        Attribute("river").sample(gpt2, 2)
    with pytest.raises(UserError, match="two files of one table"):
        Attribute(entities="x.json").sample(gpt2, 2)


def test_induction_of_a_trained_model_and_what_is_explained():
    model, tokenizer = load("stdlib-small")
    examples = Induction().sample(tokenizer, 8)
    clean, corrupted = (np.asarray(side) for side in baseline(model, examples.contrast))
    assert (clean > 5).all()  # the model continues the repetition, and with the other token the other way
    assert (corrupted < -5).all()
    differ = np.argwhere(np.asarray(examples.contrast.clean) != np.asarray(examples.contrast.corrupted))
    assert differ.tolist() == [[row, p] for row, p in enumerate(examples.position("after").tolist())]
    tokens = np.asarray(examples.contrast.clean)
    assert (tokens[:, -1] == tokens[np.arange(8), examples.position("first")]).all()
    with pytest.raises(UserError, match="different ones"):
        Induction().of_ids(np.arange(12), 2)
    with pytest.raises(UserError, match="repeat 1 to"):
        Induction(repeated=12).of_ids(np.arange(40), 2)


def test_modular_addition_prompts():
    examples = ModularAddition(7, "a").sample(50, seed=2)
    clean, corrupted = np.asarray(examples.contrast.clean), np.asarray(examples.contrast.corrupted)
    assert (examples.answers == clean[:, :2].sum(1) % 7).all()
    assert (clean[:, 0] != corrupted[:, 0]).all()
    assert (clean[:, 1:] == corrupted[:, 1:]).all()
    assert (np.asarray(examples.contrast.metric.other) == corrupted[:, :2].sum(1) % 7).all()


def test_the_spread_of_a_mean():
    found = spread(
        [1.0, 3.0, 5.0, 7.0], {"order": ["a", "a", "b", "b"], "noise": ["x", "y", "x", "y"], "one": ["z"] * 4}
    )
    assert (found.mean, found.n, found.least, found.most) == (4.0, 4, 1.0, 7.0)
    np.testing.assert_allclose(found.std, np.std([1, 3, 5, 7], ddof=1))
    # by hand: the whole sum of squares is 20; between a and b it is 4 · 2² = 16, between x and y 4 · 1² = 4
    assert dict(found.explained) == {"order": 0.8, "noise": 0.2}
    assert found.by_chance["order"] == pytest.approx(1 / 3)
    assert "explained by order 80%" in str(found)
    for wrong in ([], [np.nan], [[1.0]]):
        with pytest.raises(UserError, match="finite number"):
            spread(wrong)
    with pytest.raises(UserError, match="2 labels for 1"):
        spread([1.0], {"f": ["a", "b"]})


def test_a_metric_at_a_position_that_is_not_there_is_refused():
    logits = np.zeros((2, 5, 7), np.float32)
    assert LogitDifference(1, 2, pos=-5)(logits).shape == (2,)
    for pos in (5, -6):
        with pytest.raises(UserError, match="positions -5 to 4"):
            LogitDifference(1, 2, pos=pos)(logits)
