"""`evaluate_probes` on small models in which it is known what can be read where."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes import (
    EvaluationOptions,
    LabelledTokens,
    MassMean,
    evaluate_probes,
    given_split,
    group_split,
    random_split,
)
from jax_interp.probes.causal_effect import ProbabilityDifference
from jax_interp.probes.kinds.lda import LDA
from jax_interp.probes.report_causes import Answers
from jax_interp.surgery import Site, run_blocks

A, B, FILLERS, BENIGN = 10, 10, 20, 5
VOCABULARY = A + B + FILLERS + BENIGN


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Compare:
    """Adds, at each token, the product of the features that the last two tokens but one have."""

    read: jax.Array
    write: jax.Array

    def __call__(self, x, site):
        x = site("resid_pre", x)
        back = lambda n: jnp.pad(x, ((0, 0), (n, 0), (0, 0)))[:, : x.shape[1]]
        high = jax.lax.Precision.HIGHEST
        product = jnp.einsum("bpd,d->bp", back(2), self.read, precision=high) * jnp.einsum(
            "bpd,d->bp", back(1), self.read, precision=high
        )
        return site("resid_post", x + product[..., None] * self.write[None, None])


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Comparing:
    """Tokens of two kinds have the feature ±1. After block 1 the last token says whether the features of the two before
    it are equal. The words alone do not say it."""

    embed: jax.Array
    blocks: list[Compare]

    def __call__(self, tokens, *, mask=None, taps=()):
        site = Site.open(taps, self.blocks)
        x = run_blocks(self.blocks, site("embed", self.embed[tokens]), site)
        logits = jnp.stack([x[..., 1], jnp.zeros_like(x[..., 1])], axis=-1)
        return site.close(site("logits", logits, "batch pos vocab"))


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    d = 24
    noise = rng.normal(0, 0.5, (VOCABULARY, d))
    noise[:, :2] = 0
    noise[:A, 0], noise[A : A + B, 0] = 1, -1
    read, write = np.zeros(d), np.zeros(d)
    read[0], write[1] = 1, 2
    array = lambda a: jnp.asarray(a, jnp.float32)
    nothing = Compare(array(np.zeros(d)), array(np.zeros(d)))
    return Comparing(array(noise), [nothing, Compare(array(read), array(write))])


def pairs_of_words(n=240, seed=0, name="equal", filler=(20, 30)):
    """filler, word, word, filler: positive if both words are of one kind. Each example is its own group."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2, (n, 2))
    words = kinds * A + rng.integers(0, A, (n, 2))
    ends = rng.integers(filler[0], filler[1], (n, 2))
    tokens = np.concatenate([ends[:, :1], words, ends[:, 1:]], axis=1).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    return LabelledTokens(name, tokens, mask, mask, (kinds[:, 0] == kinds[:, 1]).astype(np.int32), ("no", "yes"))


@pytest.fixture(scope="module")
def control():
    rng = np.random.default_rng(3)
    tokens = rng.integers(20, 45, (400, 4)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    return LabelledTokens("benign", tokens, mask, mask, np.zeros(400, np.int32), ("benign",))


@pytest.fixture(scope="module")
def report(model, control):
    others = {"other fillers": pairs_of_words(200, 1, "other fillers", (30, 40))}
    flipped = pairs_of_words(200, 2, "flipped", (30, 40))
    others["flipped"] = dataclasses.replace(flipped, labels=1 - flipped.labels)
    return evaluate_probes(
        model,
        {"mean": MassMean(), "LDA": LDA(shrinkage=(0.01, 0.5))},
        pairs_of_words(),
        "blocks.*.resid_post",
        control=control,
        others=others,
        options=EvaluationOptions(resets=2, fprs=(0.05, 0.001), answers=Answers(ProbabilityDifference([0], [1]))),
    )


def test_every_site_kind_and_strength_is_there_and_the_right_one_is_chosen(report):
    places = [(figures.kind, figures.site, figures.strength) for figures in report.probes]
    sites = ("blocks.0.resid_post", "blocks.1.resid_post")
    assert places == [("mean", site, None) for site in sites] + [
        ("LDA", site, pytest.approx(strength)) for site in sites for strength in (0.01, 0.5)
    ]
    for best in report.chosen.values():
        assert best.site == "blocks.1.resid_post"
        assert best.test.auroc.value > 0.99
        assert best.test.accuracy.value > 0.97
        assert best.train > 0.97
        assert best.validation == max(one.validation for one in report.probes if one.kind == best.kind)


def test_what_cannot_be_read_is_not_found(report):
    """Before block 1, in words, on shuffled labels, on reset networks: chance is inside the interval."""
    for figures in report.probes:
        if figures.site == "blocks.0.resid_post":
            assert figures.test.auroc.low < 0.5 < figures.test.auroc.high + 0.05
            assert figures.gap.low < 0
        assert figures.shuffled.auroc.low < 0.5 < figures.shuffled.auroc.high
        assert figures.reset.auroc.value < 0.8
    assert report.text["bag of words"].auroc.low < 0.5
    for best in report.chosen.values():
        assert best.gap.low > 0.2
        assert best.selectivity == pytest.approx(best.test.accuracy.value - best.shuffled.accuracy.value)
        assert best.selectivity > 0.3


def test_figures_are_those_of_the_scores(report, model, control):
    """AUROC, accuracy and recall of the chosen probe, from its own scores."""
    data, best = pairs_of_words(), report.chosen["mean"]
    split = group_split(data, seeds=(0, 1, 2))
    fitted = report.fitted["mean"]
    aurocs, accuracies, recalls, elsewhere = [], [], [], []
    other = pairs_of_words(200, 1, "other fillers", (30, 40))
    x, of_other, benign = (last_token(model, one) for one in (data, other, control))
    for number, (train, test) in enumerate(zip(split.train, split.test)):
        probe = fitted.probe(site=best.site, split=number)
        means = [x[train & (data.labels == label)].mean(axis=0) for label in (0, 1)]
        np.testing.assert_allclose(probe.direction(), means[1] - means[0], atol=1e-4)
        scores = np.asarray(probe.score(x))
        positive, negative = scores[test & (data.labels == 1)], scores[test & (data.labels == 0)]
        aurocs.append((positive[:, None] > negative[None]).mean())
        accuracies.append(((scores > float(probe.threshold)) == data.labels)[test].mean())
        threshold = np.quantile(np.asarray(probe.score(benign)), 0.95)
        recalls.append((positive > threshold).mean())
        scores = np.asarray(probe.score(of_other))
        elsewhere.append((scores[other.labels == 1][:, None] > scores[other.labels == 0][None]).mean())
    assert best.test.auroc.value == pytest.approx(np.mean(aurocs), abs=1e-6)
    assert best.test.accuracy.value == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert best.recalls[0].recall.value == pytest.approx(np.mean(recalls), abs=1e-6)
    assert best.elsewhere["other fillers"].auroc.value == pytest.approx(np.mean(elsewhere), abs=1e-6)
    assert [one.fpr for one in best.recalls] == [0.05]  # 400 controls are too few for .001


def last_token(model, data):
    """The value after block 1 at the last token, by the definition of the model."""
    embed = np.asarray(model.embed, np.float64)
    x = embed[data.tokens]
    found = x[:, -1].copy()
    found[:, 1] += 2 * x[:, -3, 0] * x[:, -2, 0]
    return found.astype(np.float32)


def test_the_model_uses_the_direction_that_was_read(report):
    """The answer is a function of the coordinate that the probe reads."""
    for kind, effect in report.causes.items():
        assert set(effect.controls) >= {"random 0", "orthogonal"}
        if kind == "mean":
            for way in ("positive", "negative"):
                assert effect.nie(kind, way).value == pytest.approx(1, abs=0.15)
                # probes on shuffled labels lie along the largest variance, which is this direction too
                others = [name for name in effect.controls if not name.startswith("shuffled")]
                assert all(abs(effect.nie(name, way).value) < 0.7 for name in others)


def test_the_report_warns(report):
    text = "\n".join(report.warnings)
    assert "on flipped the direction points the wrong way" in text
    assert "400 control examples are too few for a false-alarm rate of 0.001" in text
    assert "other fillers" not in text
    assert "bag of words" not in text
    assert "there is no other set" not in text


def test_a_report_is_json_and_lines(report):
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["probes"][found["chosen"]["mean"]]["site"] == "blocks.1.resid_post"
    assert found["data"]["examples"] == 240
    assert found["others"]["flipped"]["examples"] == 200
    assert found["probes"][0]["calibration"] is None  # a difference of means is no log-odds
    assert found["probes"][-1]["calibration"]["brier"] < 0.1
    lines = "\n".join(report.lines())
    for part in ("bag of words alone", "length alone", "selectivity", "reset network", "other fillers", "false alarms"):
        assert part in lines


def test_the_within_class_shuffle_keeps_the_mean_difference(report):
    """It keeps class means exactly, so the difference of means is the same probe."""
    assert report.chosen["mean"].within_class.cosine == pytest.approx(1, abs=1e-4)
    assert report.chosen["mean"].within_class.score.auroc == report.chosen["mean"].test.auroc


def test_texts_of_the_set_are_left_out_of_the_others(model):
    data = pairs_of_words()
    more = pairs_of_words(200, 1, "more", (30, 40))
    rows = np.concatenate([data.tokens[:50], more.tokens])
    mask = np.ones(rows.shape, bool)
    mixed = LabelledTokens("mixed", rows, mask, mask, np.append(data.labels[:50], more.labels), data.classes)
    found = evaluate_probes(
        model, MassMean(), data, "blocks.1.resid_post", others={"mixed": mixed, "more": more},
        options=EvaluationOptions(shuffles=0, resets=0, within_class=False),
    )  # fmt: skip
    assert found.others["mixed"].removed == 50
    best = found.chosen["MassMean"]
    assert best.elsewhere["mixed"] == best.elsewhere["more"]
    assert (best.shuffled, best.reset, best.within_class, best.selectivity) == (None, None, None, None)
    assert "the model was not moved" in "\n".join(found.warnings)
    assert "there is no control set" in "\n".join(found.warnings)
    with pytest.raises(UserError, match="all texts of equal are in equal"):
        evaluate_probes(model, MassMean(), data, "blocks.1.resid_post", control=data)


def test_a_split_that_leaks_is_named(model):
    data = dataclasses.replace(pairs_of_words(), groups=np.arange(240) // 4)
    options = EvaluationOptions(shuffles=0, resets=0, within_class=False)
    found = evaluate_probes(model, MassMean(), data, "blocks.1.resid_post", split=random_split(data), options=options)
    assert found.split.how == "random"
    assert "the random split divides up to" in found.warnings[0]


def test_what_has_no_report_is_refused(model):
    data = pairs_of_words()
    site = "blocks.1.resid_post"
    three = dataclasses.replace(data, classes=("a", "b", "c"))
    with pytest.raises(UserError, match="a report needs two"):
        evaluate_probes(model, MassMean(), three, site)
    foreign = dataclasses.replace(pairs_of_words(50, 5), classes=("a", "b"))
    with pytest.raises(UserError, match=r"other has the classes a, b; equal has no, yes"):
        evaluate_probes(model, MassMean(), data, site, others={"other": foreign})
    rows = pairs_of_words(200, 1, filler=(30, 40))
    one = rows.take(rows.labels == 1)
    with pytest.raises(UserError, match="examples of one class only"):
        evaluate_probes(model, MassMean(), data, site, others={"one": one})
    with pytest.raises(UserError, match="is in the training part and in the test part"):
        given_split(data, np.ones(240, bool), np.ones(240, bool))
