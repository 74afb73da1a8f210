"""Directions from labelled texts: closed forms on each text by itself, probes, padding, edits, and what is refused."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.probes import All, Last, Logistic, MassMean, Nth, Span, fit_probes, gather, host_memory
from jax_interp.steering import Questions
from jax_interp.steering.finding import (
    LAT,
    CentredPCA,
    LogisticDirection,
    MeanDifference,
    PairedPCA,
    UnbalancedChoicesWarning,
    balanced,
    find_directions,
    imbalance,
    pairs_of_questions,
)
from jax_interp.steering.finding.shared_prompts import shared_prompts
from jax_interp.surgery import Add, at, edit, values_at
from jax_interp.training.meshes import make_mesh
from tests.small_models import GPT2_LIKE, peaky

SITES = "blocks.*.resid_post"
A, B, OPEN, CLOSE = 5, 6, 7, 8
CHOICE = Span("choice")
METHODS = (MeanDifference(), PairedPCA(), CentredPCA(), LogisticDirection(), LAT())


def questions(letters: str = "ABABABABAB") -> Questions:
    """Prompts of 5 or 6 tokens, answered by "(A)" or "(B)": the letter of the matching answer of each."""
    rng = np.random.default_rng(0)
    prompts = tuple(tuple(rng.integers(9, 40, 5 + (i % 3 == 0)).tolist()) for i in range(len(letters)))
    answers = [(OPEN, A, CLOSE), (OPEN, B, CLOSE)]
    matching = tuple(answers["AB".index(letter)] for letter in letters)
    other = tuple(answers["BA".index(letter)] for letter in letters)
    return Questions("letters", prompts, matching, other, {"letter": tuple(letters)})


@pytest.fixture(scope="module")
def model():
    return peaky(GPT2_LIKE)


@pytest.fixture(scope="module")
def data():
    return pairs_of_questions(questions())


@pytest.fixture(scope="module")
def found(model, data):
    """Without shared prompts, since the rule `all` reads them."""
    return find_directions(model, data, METHODS, rules=(CHOICE, All()), batch=len(data))


@jax.jit
def alone(model, tokens):
    return values_at(model, SITES)(tokens)[SITES]


@pytest.fixture(scope="module")
def texts(model, data):
    """The residual stream `[layer, pos, d]` of each text, from batches of one length without padding."""
    every: dict[int, np.ndarray] = {}
    lengths = data.mask.sum(axis=1)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        values = np.asarray(alone(model, jnp.asarray(data.tokens[rows, :length])), np.float64)
        every.update(zip(rows.tolist(), values.swapaxes(0, 1), strict=True))
    return [every[row] for row in range(len(data))]


def sides(texts, rule: str):
    """(matching, other), each `[pair, layer, d]`."""
    rows = np.stack([x[:, -2] if rule == "choice" else x.mean(axis=1) for x in texts])
    return np.split(rows, 2)


def test_pairs_hold_the_questions(data):
    asked = questions()
    assert len(data) == 2 * len(asked)
    assert data.classes == ("other", "matching")
    for number, (first, second) in enumerate(data.pairs):
        for row, answer in ((first, asked.matching[number]), (second, asked.other[number])):
            assert tuple(data.tokens[row][data.mask[row]]) == asked.prompts[number] + answer
            assert data.tokens[row][data.spans["choice"][row]].tolist() == [answer[1]]
        assert (data.labels[first], data.labels[second]) == (1, 0)
        assert data.groups[first] == data.groups[second]
    assert data.columns["letter"] == asked.factors["letter"] * 2


@pytest.mark.parametrize("rule", ["choice", "all"])
def test_the_mean_difference_is_that_of_each_text_by_itself(found, texts, rule):
    matching, other = sides(texts, rule)
    wanted = (matching - other).mean(axis=0)
    vector = found.vector(method="mean difference", rule=rule)
    assert list(vector.vectors) == [f"blocks.{layer}.resid_post" for layer in range(len(wanted))]
    np.testing.assert_allclose(np.stack(list(vector.vectors.values())), wanted, atol=2e-5)
    norms = np.mean([np.linalg.norm(x[:, -2:-1] if rule == "choice" else x, axis=-1).mean(axis=1) for x in texts], 0)
    number = found.axes["rule"].index(rule)
    np.testing.assert_allclose(found.norms[:, number], norms, rtol=1e-5)
    relative = found.relative_norms.sel(rule=number, method=0)
    np.testing.assert_allclose(relative, np.linalg.norm(wanted, axis=-1) / norms, rtol=1e-4)


def test_components_are_those_of_numpy(found, texts):
    matching, other = sides(texts, "choice")
    rows = np.concatenate([matching, other])
    order = np.random.default_rng(0).permutation(len(rows)).reshape(-1, 2)  # as documented: a permutation by the seed
    random = rows[order[:, 0]] - rows[order[:, 1]]
    wanted = {
        "paired PCA": matching - other,
        "centred PCA": rows - rows.mean(axis=0),
        "LAT": random - random.mean(axis=0),
    }
    for method, x in wanted.items():
        for layer, v in enumerate(found.vector(method=method, rule="choice").vectors.values()):
            component = np.linalg.svd(x[:, layer], full_matrices=False)[2][0]
            towards = component @ (matching - other)[:, layer].mean(axis=0)
            np.testing.assert_allclose(v, component * np.sign(towards), atol=1e-3)


def test_directions_are_those_of_probes(model, data, found):
    vectors = gather(model, data, SITES, (CHOICE, All()))
    for method, kind in (("mean difference", MassMean()), ("logistic direction", Logistic())):
        weight = np.asarray(jax.tree.leaves(fit_probes(kind, vectors).probes)[0])[:, :, 0, 0, 0, 0]
        ours = found.vectors[:, :, found.axes["method"].index(method)]
        scale = 1.0 if method == "mean difference" else np.linalg.norm(weight, axis=-1, keepdims=True)
        np.testing.assert_allclose(ours, weight / scale, atol=1e-4)


def test_a_prompt_is_computed_once_and_nothing_changes(model, data, found):
    weight = np.asarray(data.spans["choice"])[:, None].astype(np.float32)
    shared = shared_prompts(model, data, weight)
    assert shared is not None
    assert (shared.prompts.mask.sum(), shared.mask.sum()) == (sum(len(p) + 1 for p in questions().prompts), len(data))
    ours = find_directions(model, data, METHODS[:2], rules=CHOICE, batch=7)  # the last batch has copies
    np.testing.assert_allclose(ours.vectors[:, 0], found.vectors[:, 0, :2], atol=2e-4)
    np.testing.assert_allclose(ours.norms[:, 0], found.norms[:, 0], rtol=1e-5)
    left = dataclasses.replace(data, **{
        name: np.stack([np.roll(row, data.mask.shape[1] - n) for row, n in zip(array, data.mask.sum(1), strict=True)])
        for name, array in (("tokens", data.tokens), ("mask", data.mask), ("readable", data.readable))
    }, spans={"choice": np.stack([
        np.roll(row, data.mask.shape[1] - n) for row, n in zip(data.spans["choice"], data.mask.sum(1), strict=True)
    ])})  # fmt: skip
    again = find_directions(model, left, METHODS[:2], batch=7)
    np.testing.assert_allclose(again.vectors, ours.vectors, atol=2e-4)


def test_edits_act_and_prompts_are_then_not_shared(model, data):
    """An edit at negative positions counts from the end of a text: the last token of the whole text is meant."""
    push = jnp.linspace(-1.0, 1.0, GPT2_LIKE.d_model)
    edited = edit(model, at("blocks.0.resid_post", Add(push), pos=-2))
    assert shared_prompts(edited, data, np.asarray(data.spans["choice"])[:, None].astype(np.float32)) is None
    rows = gather(edited, data, SITES, CHOICE).stacked()[:, 0]
    n = len(data) // 2
    ours = find_directions(edited, data, sites=SITES).vectors[:, 0, 0]
    np.testing.assert_allclose(ours, rows[:, :n].mean(axis=1) - rows[:, n:].mean(axis=1), atol=2e-5)


def test_lengths_of_vectors(found):
    one = functools.partial(found.vector, rule="choice", sites=SITES.replace("*", "1"))
    own, unit, relative = (one(method="paired PCA", length=length).norms() for length in ("own", "unit", "relative"))
    site = "blocks.1.resid_post"
    assert own[site] == pytest.approx(1, abs=1e-5)
    assert unit[site] == pytest.approx(1, abs=1e-5)
    assert relative[site] == pytest.approx(found.norms[1, 0], rel=1e-5)
    assert found.agreement().values[:, :, 0, 0] == pytest.approx(1)
    assert "10 matching in 10 pairs" in found.describe()
    with pytest.raises(UserError, match="name one method: there are 'mean difference', 'paired PCA'"):
        one()
    with pytest.raises(UserError, match="no method 'mean': there are"):
        one(method="mean")


def test_letters_cancel_or_a_warning_says_so():
    assert imbalance(questions()) == 0
    lopsided = questions("AAABAAABAA")
    assert imbalance(lopsided) == pytest.approx((8 - 2) / 10)
    with pytest.warns(UnbalancedChoicesWarning, match="unbalanced by 60%"):
        pairs_of_questions(lopsided)
    kept = balanced(lopsided)
    assert sorted(kept.factors["letter"]) == list("AABB")
    with pytest.raises(UserError, match="no two questions have the same choices exchanged"):
        balanced(questions("AAAA"))
    texts = Questions("texts", ((1,), (1,)), ((2, 3), (4, 5)), ((6,), (7, 8)))
    assert imbalance(texts) == 0  # each choice occurs once: the answers are no letters


def test_what_is_refused(model, data, monkeypatch):
    find = functools.partial(find_directions, model)
    with pytest.raises(UserError, match="paired PCA needs contrast pairs"):
        find(dataclasses.replace(data, pairs=None), PairedPCA())
    with pytest.raises(UserError, match="reads no token after the first difference"):
        find(data, rules=Nth(0))
    with pytest.raises(UserError, match="no text of the class 'other'"):
        find(dataclasses.replace(data, labels=np.ones(len(data), np.int32)).take(np.arange(len(data) // 2, len(data))))
    with pytest.raises(UserError, match="both texts of pair 0"):
        find(dataclasses.replace(data, labels=(np.arange(len(data)) % 2).astype(np.int32)))
    with pytest.raises(UserError, match="methods with different names"):
        find(data, [MeanDifference(), MeanDifference()])
    with pytest.raises(UserError, match="different widths"):
        find(data, sites=["blocks.0.resid_post", "blocks.0.mlp.post"])
    broken = edit(model, at("blocks.1.resid_post", Add(jnp.full(GPT2_LIKE.d_model, jnp.nan))))
    with pytest.raises(UserError, match=r"blocks.1.resid_post is not finite"):
        find_directions(broken, data)
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 1000)
    find_directions(model, data)  # means keep no rows
    with pytest.raises(UserError, match="GiB of memory"):
        find(data, PairedPCA())


@pytest.mark.slow
@pytest.mark.parametrize("rule", [CHOICE, Last()])
@pytest.mark.parametrize("axes", [{"data": 2}, {"fsdp": 2}, {"tensor": 2}])
def test_a_mesh_changes_nothing(model, data, axes, rule):
    one = find_directions(model, data, METHODS[:2], rules=rule, batch=8)
    several = find_directions(model, data, METHODS[:2], rules=rule, batch=8, place=make_mesh(**axes))
    np.testing.assert_allclose(several.vectors, one.vectors, atol=2e-4)
