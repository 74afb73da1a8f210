"""AUROC, ROC curves, calibration and the bag of words against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import run_oracle

from jax_interp.probes import LabelledTokens
from jax_interp.probes.baselines import bag_of_words
from jax_interp.probes.measures import auroc, calibration, roc_curve

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(the arrays, what scikit-learn computes from them)"""
    folder, rng = tmp_path_factory.mktemp("sklearn"), np.random.default_rng(0)
    y = rng.random(400) < 0.3
    tokens = rng.integers(0, 60, (400, 12)) // (1 + y[:, None])
    counts = np.stack([np.bincount(row, minlength=60) for row in tokens])
    p = np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0.001, 0.999)
    given = {"y": y, "scores": np.round(rng.normal(y, 1), 1), "p": p, "counts": counts, "train": np.arange(400) % 4 > 0}
    np.savez(folder / "in.npz", **given)
    run_oracle("sae_probes", "sklearn_probe_measures.py", folder / "in.npz", folder / "out.npz")
    return {**given, "tokens": tokens}, np.load(folder / "out.npz")


def test_the_curve_and_its_area(both):
    given, wanted = both
    curve = roc_curve(given["scores"], given["y"])
    np.testing.assert_allclose(curve.false_positive, wanted["false_positive"], atol=1e-12)
    np.testing.assert_allclose(curve.true_positive, wanted["true_positive"], atol=1e-12)
    assert float(auroc(given["scores"], given["y"])) == pytest.approx(float(wanted["auroc"]), abs=1e-12)


def test_calibration(both):
    given, wanted = both
    found = calibration(given["p"], given["y"])
    some = found.count > 0
    assert found.brier == pytest.approx(float(wanted["brier"]), abs=1e-12)
    assert found.log_loss == pytest.approx(float(wanted["log_loss"]), abs=1e-9)
    np.testing.assert_allclose(found.frequency[some], wanted["frequency"], atol=1e-12)
    np.testing.assert_allclose(found.confidence[some], wanted["confidence"], atol=1e-12)


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_the_bag_of_words(both, C):
    given, wanted = both
    tokens, mask = given["tokens"].astype(np.int32), np.ones(given["tokens"].shape, bool)
    data = LabelledTokens("words", tokens, mask, mask, given["y"].astype(np.int32), ("no", "yes"))
    np.testing.assert_allclose(bag_of_words(data, given["train"], C=C)[0], wanted[f"words {C}"], rtol=1e-4, atol=1e-3)
