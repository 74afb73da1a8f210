"""What carries over between sets: matrices, principal views, lengths and styles, where the answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jax_interp import UserError, load
from jax_interp.probes import (
    LabelledTokens,
    Last,
    MassMean,
    Vectors,
    augmented,
    city_statements,
    generalisation_matrix,
    group_split,
    joined,
    length_confound,
    parts_of,
    principal_view,
    restyled,
)
from jax_interp.probes.generalisation import ORACLE
from jax_interp.probes.kinds.lda import LDA
from jax_interp.probes.measures import auroc
from jax_interp.probes.restyling import STYLES

D = 12


def planted(direction, shift=0.0, n=200, seed=0, name="set"):
    """x = ±direction + shift·(1, 0, …) + noise, at one site; at another site noise alone."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.int32)
    tokens = rng.integers(0, 10**6, (n, 2)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    data = LabelledTokens(name, tokens, mask, mask, labels, ("False", "True"))
    x = rng.normal(0, 0.3, (n, D)) + np.where(labels, 1, -1)[:, None] * np.asarray(direction)
    x[:, 0] += shift
    values = {"a": x.astype(np.float32)[None], "b": rng.normal(0, 1, (1, n, D)).astype(np.float32)}
    return Vectors(data, (Last(),), values)


def axis(i):
    return np.eye(D)[i]


@pytest.fixture(scope="module")
def sets():
    return {
        "first": planted(axis(0) + axis(1), seed=0, name="first"),
        "same": planted(axis(0) + axis(1), seed=1, name="same"),
        "shifted": planted(axis(0) + axis(1), 4.0, seed=2, name="shifted"),
        "orthogonal": planted(axis(2), seed=3, name="orthogonal"),
        "opposite": planted(-axis(0) - axis(1), seed=4, name="opposite"),
    }


@pytest.fixture(scope="module")
def matrix(sets):
    return generalisation_matrix(MassMean(), sets, {"two": ("first", "orthogonal")})


def cell(figures, centring, train, test, site="a"):
    index = [list(figures.axes[n]).index(v) for n, v in zip(figures.axes, (centring, train, test, site))]
    return figures.values[tuple(index)]


@pytest.mark.parametrize("centring", ["as they are", "each set centred"])
def test_the_matrix_knows_what_carries_over(matrix, centring):
    of = lambda train, test: cell(matrix.auroc, centring, train, test)
    assert of("first", "same") > 0.99
    assert of("first", "shifted") > 0.99  # AUROC within one set does not see a shift
    assert 0.3 < of("first", "orthogonal") < 0.7
    assert of("first", "opposite") < 0.01
    assert of("two", "orthogonal") > 0.95
    assert of("two", "same") > 0.95
    for test in matrix.auroc.axes["test"]:
        assert of(ORACLE, test) == of(test, test) > 0.95
        assert 0.3 < cell(matrix.auroc, centring, "first", test, "b") < 0.7


def test_centring_on_the_test_set_repairs_thresholds(matrix):
    of = lambda centring: cell(matrix.accuracy, centring, "first", "shifted")
    assert of("as they are") < 0.6
    assert of("each set centred") > 0.97
    assert cell(matrix.accuracy, "as they are", ORACLE, "shifted") > 0.97


def test_cosines_are_those_of_the_planted_directions(matrix):
    index = lambda name: list(matrix.cosine.axes["train"]).index(name)
    cosine = matrix.cosine.values[0, :, :, 0]
    np.testing.assert_allclose(np.diagonal(cosine), 1, atol=1e-5)
    assert cosine[index("first"), index("same")] > 0.97
    assert cosine[index("first"), index("opposite")] < -0.97
    assert abs(cosine[index("first"), index("orthogonal")]) < 0.15
    # the direction of both together: the mean of √2 along one and 1 along the other
    assert cosine[index("two"), index("first")] == pytest.approx((2 / 3) ** 0.5, abs=0.1)


def test_cells_of_sets_that_were_fitted_on_are_held_out(sets):
    """Labels without meaning: the diagonal is chance, although a probe knows its training labels."""
    rng = np.random.default_rng(5)
    first = planted(axis(0) * 0, n=60, seed=6)
    values = {"a": rng.normal(0, 1, (1, 60, 60)).astype(np.float32)}
    noise = dataclasses.replace(first, values=values)
    found = generalisation_matrix(LDA(shrinkage=(0.5,)), {"noise": noise}, seeds=range(4))
    assert 0.3 < found.auroc.values[0, 0, 0, 0] < 0.7
    # the same examples in a second set are known, and are left out
    twice = {"noise": noise, "again": dataclasses.replace(noise, data=dataclasses.replace(noise.data, name="again"))}
    found = generalisation_matrix(LDA(shrinkage=(0.5,)), twice, seeds=range(4))
    assert 0.3 < cell(found.auroc, "as they are", "noise", "again") < 0.7


def test_sets_that_share_what_leaks_are_split_together(sets):
    columns = {"city": tuple(str(i) for i in range(200))}
    named = {
        name: dataclasses.replace(one, data=dataclasses.replace(one.data, columns=columns))
        for name, one in list(sets.items())[:2]
    }
    found = generalisation_matrix(MassMean(), named, together="city", seeds=(0,))
    data = joined([one.data for one in named.values()], "both")
    test = group_split(dataclasses.replace(data, groups=np.tile(np.arange(200), 2)), 0.2, (0,)).test[0]
    np.testing.assert_array_equal(test[:200], test[200:])
    x = named["first"].values["a"][0]
    labels = named["first"].data.labels
    direction = x[~test[:200] & (labels == 1)].mean(axis=0) - x[~test[:200] & (labels == 0)].mean(axis=0)
    same = named["same"]
    expected = auroc((same.values["a"][0] @ direction)[test[200:]], same.data.labels[test[200:]] == 1)
    assert cell(found.auroc, "as they are", "first", "same") == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(UserError, match="not all sets have a column 'country'"):
        generalisation_matrix(MassMean(), named, together="country")


def test_the_matrix_in_words(matrix):
    lines = "\n".join(matrix.lines("a"))
    assert ORACLE in lines
    assert "orthogonal" in lines
    assert matrix.to_json()["trained_on"]["two"] == ["first", "orthogonal"]
    with pytest.raises(UserError, match="no site 'c'"):
        matrix.lines("c")


def test_what_has_no_matrix_is_refused(sets):
    with pytest.raises(UserError, match="have at most one strength"):
        generalisation_matrix(LDA(shrinkage=(0.1, 0.5)), sets)
    with pytest.raises(UserError, match="names the set 'other'"):
        generalisation_matrix(MassMean(), sets, {"row": ("other",)})
    fewer = dataclasses.replace(sets["first"], values={"a": sets["first"].values["a"]})
    with pytest.raises(UserError, match="different sites or tokens"):
        generalisation_matrix(MassMean(), {"first": sets["first"], "fewer": fewer})


@pytest.mark.parametrize("n", [200, 8])
def test_principal_components(sets, n):
    rows = np.arange(n)
    one = sets["first"].take(rows)
    view = principal_view(one, "a")
    x = one.values["a"][0].astype(np.float64)
    u, s, v = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(view.fractions, s[:2] ** 2 / (s**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(view.components), np.abs(v[:2]), atol=1e-6)
    np.testing.assert_allclose(np.abs(view.points), np.abs(u[:, :2] * s[:2]), atol=1e-6)
    np.testing.assert_allclose(view.components @ view.components.T, np.eye(2), atol=1e-8)
    assert view.auroc[0] > 0.99
    assert len(view.to_json()["points"]) == n


def test_a_view_of_several_sets_centres_each(sets):
    both = principal_view({"first": sets["first"], "shifted": sets["shifted"]}, "a")
    assert both.fractions[0] > 0.5  # the shift between sets is gone: the classes are the largest direction
    assert both.auroc[0] > 0.99
    np.testing.assert_array_equal(np.bincount(both.sets), [200, 200])
    with pytest.raises(UserError, match="13 components"):
        principal_view(sets["first"], "a", components=13)


def test_length_confounds():
    rng = np.random.default_rng(7)
    length = rng.integers(5, 40, 600)
    positive = rng.random(600) < length / 45
    of_length = length_confound(length + rng.normal(0, 1, 600), positive, length, bins=8)
    assert of_length.correlation > 0.98
    assert of_length.within_class > 0.98
    assert of_length.length_auroc == pytest.approx(float(auroc(length, positive)))
    assert of_length.at_equal_length < of_length.length_auroc - 0.1
    assert sum(of_length.examples) == 600
    assert all(a[1] < b[0] for a, b in zip(of_length.bins, of_length.bins[1:]))
    of_class = length_confound(positive + rng.normal(0, 0.5, 600), positive, length)
    assert np.abs(of_class.within_class) < 0.1 < np.asarray(of_class.correlation)
    assert of_class.at_equal_length == pytest.approx(
        float(auroc(positive + rng.normal(0, 0.5, 600), positive)), abs=0.05
    )
    same = length_confound(rng.normal(0, 1, 600), positive, np.full(600, 7))
    assert (same.correlation, same.within_class, same.length_auroc, same.examples) == (None, None, 0.5, (600,))
    with pytest.raises(UserError, match="599 lengths"):
        length_confound(np.zeros(600), positive, length[1:])


@pytest.fixture(scope="module")
def cities():
    _, tokenizer = load("stdlib-small")
    assert tokenizer is not None
    data = city_statements().tokenized(tokenizer)
    return data.take(np.arange(24)), tokenizer


def test_styles_keep_labels_groups_and_meaning(cities):
    data, tokenizer = cities
    found = restyled(data, tokenizer)
    assert set(found) == set(STYLES) - {"other quotes"}  # these statements have no quotes
    for name, one in found.items():
        rows = np.asarray(one.columns["original"])
        assert one.classes == data.classes
        np.testing.assert_array_equal(one.labels, data.labels[rows])
        for text, row in zip(one.texts, rows):
            assert text == STYLES[name](data.texts[row]) != data.texts[row]
    assert found["synonyms"].texts[0] == "The town of Paris is located in France."
    with pytest.raises(UserError, match="no texts"):
        restyled(dataclasses.replace(data, texts=()), tokenizer)


def test_versions_of_a_text_stay_on_one_side(cities):
    data, tokenizer = cities
    styles = restyled(data, tokenizer)
    both = augmented(data, *styles.values())
    assert len(both) == len(data) + sum(map(len, styles.values()))
    split = group_split(both, 0.3, seeds=(0,))
    origin = np.concatenate([np.arange(len(data)), *(np.asarray(one.columns["original"]) for one in styles.values())])
    assert not set(origin[split.train[0]]) & set(origin[split.test[0]])
    parts = parts_of(both, "style")
    assert list(parts) == ["clean", *styles]
    for part in parts.values():
        rows = np.asarray(part.columns["original"])
        np.testing.assert_array_equal(part.tokens, both.tokens[rows])
    with pytest.raises(UserError, match="not a restyled version"):
        augmented(data, data)
    with pytest.raises(UserError, match="no column 'topic'"):
        parts_of(both, "topic")
