"""Ensembles of probes of several sites: the combination in float64, what it gains, and that nothing leaks into it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import scipy.optimize

from jax_interp import UserError
from jax_interp.probes import (
    LDA,
    Adam,
    All,
    EnsembleProbe,
    LabelledTokens,
    Last,
    MassMean,
    Max,
    Nth,
    Sequences,
    TokenProbe,
    Vectors,
    fit_ensemble,
    grouped_folds,
)
from jax_interp.probes.measures import auroc
from jax_interp.probes.splits import leaking_groups

N, D = 240, 6
TRAIN = np.arange(N) < 160


def labelled(y: np.ndarray, groups: np.ndarray | None = None) -> LabelledTokens:
    mask = np.ones((len(y), 1), bool)
    tokens = np.arange(len(y), dtype=np.int32)[:, None]  # each text differs
    return LabelledTokens("planted", tokens, mask, mask, y.astype(np.int32), ("no", "yes"), groups)


@pytest.fixture(scope="module")
def turning() -> Vectors:
    """Each of four sites shows the concept in a third of the examples, in a direction of its own."""
    rng = np.random.default_rng(0)
    y, shown = rng.integers(0, 2, N), rng.random((4, N)) < 1 / 3
    x = rng.normal(size=(4, N, D))
    for site in range(4):
        x[site, :, site] += 6 * (y - 0.5) * shown[site]
    values = {f"blocks.{site}": (10.0**site * of)[None].astype(np.float32) for site, of in enumerate(x)}
    return Vectors(labelled(y, np.arange(N) // 2), (Last(),), values)


def reference(on: Vectors, how: str) -> np.ndarray:
    """Scores of all examples in float64: mass-mean probes, refitted without each fold, and the combination."""
    y, fold = on.data.labels, grouped_folds(on.data, 5, among=TRAIN)

    def fitted(x: np.ndarray, rows: np.ndarray):
        means = [x[rows & (y == k)].mean(axis=0) for k in (0, 1)]
        return lambda new: (new - (means[0] + means[1]) / 2) @ (means[1] - means[0])

    z, new = np.empty((TRAIN.sum(), 4)), np.empty((N, 4))
    for site, x in enumerate(of[0].astype(np.float64) for of in on.values.values()):
        seen = np.empty(N)
        for number in range(5):
            seen[fold == number] = fitted(x, TRAIN & (fold != number))(x)[fold == number]
        mean, scale = seen[TRAIN].mean(), seen[TRAIN].std()
        z[:, site], new[:, site] = (seen[TRAIN] - mean) / scale, (fitted(x, TRAIN)(x) - mean) / scale
    if how == "mean":
        return new.mean(axis=1)
    sign = np.where(y[TRAIN] == 1, 1.0, -1.0)
    loss = lambda w: np.logaddexp(0, -sign * (z @ w[:4] + w[4])).sum() + w[:4] @ w[:4] / 2
    w = scipy.optimize.minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x
    return new @ w[:4] + w[4]


def scores_of_sites(ensemble: EnsembleProbe, on: Vectors) -> np.ndarray:
    x = np.stack([of[0] for of in on.values.values()])
    return np.asarray(jax.vmap(lambda probe, x: probe.score(x))(ensemble.probes, x))


@pytest.mark.parametrize("how", ["mean", "stacked"])
def test_it_is_the_combination_of_out_of_fold_scores(turning, how):
    ensemble = fit_ensemble(MassMean(), turning, train=TRAIN, how=how)
    scores = np.asarray(ensemble.scores(turning).values)
    np.testing.assert_allclose(scores, reference(turning, how), rtol=2e-3, atol=2e-3)
    y, test = turning.data.labels == 1, ~TRAIN
    single = [auroc(of[test], y[test]) for of in scores_of_sites(ensemble, turning)]
    assert auroc(scores[test], y[test]) > max(single) + 0.1
    assert np.mean((scores > float(ensemble.threshold))[TRAIN] == y[TRAIN]) > 0.75
    assert ensemble.log_odds == (how == "stacked")


def test_it_reads_a_mapping_or_a_stack_inside_jit(turning):
    ensemble = fit_ensemble(MassMean(), turning, train=TRAIN, sites=("blocks.3", "blocks.1"))
    assert ensemble.sites == ("blocks.3", "blocks.1")
    x = {site: of[0] for site, of in turning.values.items()}
    scores = np.asarray(ensemble.scores(turning).values)
    found = jax.jit(lambda probe, x: probe.score(x))(ensemble, x)
    np.testing.assert_allclose(found, scores, rtol=1e-5, atol=1e-5)
    stack = np.stack([x["blocks.3"], x["blocks.1"]])
    by_direction = sum(x[site] @ np.asarray(of) for site, of in ensemble.directions().items())
    np.testing.assert_allclose(ensemble.score(jax.numpy.asarray(stack)), scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.ptp(by_direction - scores), 0, atol=1e-3)  # they differ by a constant


@pytest.mark.slow
def test_a_site_that_overfits_gets_no_weight():
    """40 examples in 60 dimensions of noise: LDA separates what it has seen. The other site shows some of it."""
    rng = np.random.default_rng(1)
    y = np.arange(40) % 2
    noise, weak = rng.normal(size=(40, 60)), rng.normal(size=(40, 60))
    weak[:, :20] += 0.8 * (y - 0.5)[:, None]
    values = {"noise": noise[None].astype(np.float32), "weak": weak[None].astype(np.float32)}
    on = Vectors(labelled(y), (Last(),), values)
    ensemble = fit_ensemble(LDA(shrinkage=(0.05,)), on)
    alone = scores_of_sites(ensemble, on)
    assert auroc(alone[0], y == 1) == 1.0
    spread = np.asarray(ensemble.weight) * alone.std(axis=1)
    assert abs(spread[0]) < 0.3 * spread[1]


@pytest.mark.slow
def test_it_combines_probes_of_sequences(turning):
    rng = np.random.default_rng(0)
    read = np.arange(4)[None, :] < rng.integers(2, 5, N)[:, None]
    values = {
        site: np.where(read[:, :, None], np.repeat(x[0][:, None], 4, axis=1), 0).astype(np.float32)
        for site, x in list(turning.values.items())[:2]
    }
    on = Sequences(turning.data, All(), read, values)
    ensemble = fit_ensemble(TokenProbe(Max(), adam=Adam(passes=40)), on, train=TRAIN, folds=2)
    x = jax.numpy.asarray(np.stack(list(values.values())))
    np.testing.assert_allclose(
        ensemble.token_scores(x)[:, 0], ensemble.scores(on).values, rtol=1e-4, atol=1e-4
    )  # all tokens of a text are equal
    assert auroc(np.asarray(ensemble.scores(on).values)[~TRAIN], turning.data.labels[~TRAIN] == 1) > 0.65


def test_folds_keep_groups_whole_and_classes_in_their_shares():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(1, 6, 60))
    data, among = labelled(rng.random(len(groups)) < 0.2, groups), rng.random(len(groups)) < 0.8
    fold = grouped_folds(data, 4, among=among)
    assert ((fold >= 0) == among).all()
    of = leaking_groups(data)
    assert all(len(set(fold[among & (of == group)])) <= 1 for group in of)
    sizes = np.bincount(fold[among], minlength=4)
    positives = np.bincount(fold[among & (data.labels == 1)], minlength=4)
    assert np.ptp(sizes) <= 0.2 * sizes.mean()
    assert np.ptp(positives) <= 3
    np.testing.assert_array_equal(fold, grouped_folds(data, 4, among=among))
    assert (fold != grouped_folds(data, 4, among=among, seed=1)).any()


def test_what_is_refused(turning):
    with pytest.raises(UserError, match="choose one"):
        fit_ensemble(LDA(shrinkage=(0.1, 0.2)), turning)
    with pytest.raises(UserError, match="no site"):
        fit_ensemble(MassMean(), turning, sites=("blocks.9",))
    two = dataclasses.replace(
        turning, rules=(Last(), Nth(0)), values={s: np.repeat(x, 2, axis=0) for s, x in turning.values.items()}
    )
    with pytest.raises(UserError, match="name one"):
        fit_ensemble(MassMean(), two)
    assert isinstance(fit_ensemble(MassMean(), two, rule="last", train=TRAIN), EnsembleProbe)
    with pytest.raises(UserError, match="one split"):
        fit_ensemble(MassMean(), turning, train=np.ones((2, N), bool))
    with pytest.raises(UserError, match="groups of examples"):
        grouped_folds(turning.data, 500)
    one = dataclasses.replace(turning.data, groups=turning.data.labels)
    with pytest.raises(UserError, match="too few groups"):
        grouped_folds(one, 2)
    ensemble = fit_ensemble(MassMean(), turning, train=TRAIN)
    with pytest.raises(UserError, match="use directions"):
        ensemble.direction()
    with pytest.raises(UserError, match="the ensemble reads"):
        ensemble.score({"blocks.0": jax.numpy.zeros(D)})
