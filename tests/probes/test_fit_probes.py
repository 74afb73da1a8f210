"""Probes from a model's activations, end to end: what is gathered, the axes of what is fitted, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp import UserError, load
from jax_interp.probes import All, Last, MassMean, Nth, fit_probes, gather, gather_tokens, tokenized


@pytest.fixture(scope="module")
def setting():
    model, tokenizer = load("stdlib-small")
    assert tokenizer is not None
    names = ("count", "total", "index", "value", "result", "item")
    texts = [f"def {name}(x):\n    return x" for name in names] + [f"class {name}:\n    pass" for name in names]
    return model, tokenized(tokenizer, texts, [text.startswith("class") for text in texts])


def test_vectors_are_the_means_over_the_tokens_of_a_rule(setting):
    model, data = setting
    assert data.classes == ("False", "True")
    assert data.mask[:, 0].all()
    assert not data.readable[:, 0].any()
    vectors = gather(model, data, "blocks.*.resid_post", (Last(), Nth(0), All()), batch=5)
    sequences = gather_tokens(model, data, "blocks.*.resid_post", batch=7)
    assert vectors.sites == sequences.sites
    for site, x in sequences.values.items():
        for example in range(len(data)):
            at = np.flatnonzero(data.readable[example])
            expected = [x[example, at[-1]], x[example, at[0]], x[example, at].mean(axis=0)]
            np.testing.assert_allclose(vectors.values[site][:, example], expected, rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing(setting):
    model, data = setting
    short = np.argsort(data.mask.sum(axis=1), kind="stable")[:3]
    cut = data.take(short)
    length = int(cut.mask.sum(axis=1).max())
    trimmed = gather(model, type(data)(
        "trimmed", cut.tokens[:, :length], cut.mask[:, :length], cut.readable[:, :length], cut.labels, cut.classes
    ), "blocks.1.resid_post")  # fmt: skip
    whole = gather(model, data, "blocks.1.resid_post").take(short)
    np.testing.assert_allclose(trimmed.stacked(), whole.stacked(), rtol=1e-4, atol=1e-4)


def test_one_probe_for_each_site_rule_split_and_seed(setting):
    model, data = setting
    vectors = gather(model, data, "blocks.*.resid_post", (Last(), All()))
    train = np.ones((3, len(data)), bool)
    train[1, ::4] = train[2, 1::4] = False
    fitted = fit_probes(MassMean(), vectors, train=train, seeds=(0, 1))
    assert fitted.probes.direction().shape == (len(vectors.sites), 2, 1, 3, 1, 2, vectors.stacked().shape[-1])
    x = vectors.values[vectors.sites[1]][1]
    means = [x[train[2] & (data.labels == label)].mean(axis=0) for label in (0, 1)]
    probe = fitted.probe(site=vectors.sites[1], rule="all", split=2, seed=0)
    np.testing.assert_allclose(probe.direction(), means[1] - means[0], rtol=1e-4, atol=1e-4)
    scores = fitted.scores(vectors)
    assert list(scores.axes) == ["site", "rule", "labels", "split", "strength", "seed", "example"]
    own = scores.values[1, 1, 0, 2, 0, 0]
    np.testing.assert_allclose(own, (x - (means[0] + means[1]) / 2) @ (means[1] - means[0]), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(own > 0, np.asarray(probe.positive(x)))


def test_what_does_not_fit_is_refused(setting):
    model, data = setting
    vectors = gather(model, data, "blocks.1.resid_post")
    with pytest.raises(UserError, match="one class only"):
        fit_probes(MassMean(), vectors, train=np.arange(len(data)) < 3)
    with pytest.raises(UserError, match=r"reads one per example"):
        fit_probes(MassMean(), gather_tokens(model, data, "blocks.1.resid_post"))
    with pytest.raises(UserError, match="one entry for each"):
        fit_probes(MassMean(), vectors, train=np.ones(3, bool))
    with pytest.raises(UserError, match="names no token of example 0"):
        gather(model, data, "blocks.1.resid_post", Nth(500))
    with pytest.raises(UserError, match="no site"):
        fit_probes(MassMean(), vectors).probe(site="blocks.9.resid_post")
