"""Logistic probes on stdlib-small and data sets of sae-probes: scores and AUROC equal those of scikit-learn."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from oracle import FOLDER, ROOT, run_oracle

from jax_interp import load
from jax_interp.probes import All, Last, Logistic, fit_probes, from_table, gather, group_split
from jax_interp.probes.measures import auroc

pytestmark = pytest.mark.parity
TABLES = ("96_spam_is", "105_click_bait", "87_glue_cola", "22_headline_isobama", "7_hist_fig_ispolitician")
SITES, RULES = ("blocks.1.resid_post", "blocks.2.resid_post"), (Last(), All())
PER_CLASS = 250
KINDS = {"Logistic": Logistic(C=(0.001, 0.1))}


@pytest.fixture(scope="module")
def directory() -> Path:
    folder = Path(os.environ.get(FOLDER) or ROOT) / ".venv-oracle-sae_probes"
    found = next(iter(folder.glob("lib/python*/site-packages/sae_probes/data/cleaned_data")), None)
    if found is None:
        pytest.skip(f"there is no {folder}: `make oracles ORACLES=sae_probes` makes this environment")
    return found


@pytest.fixture(scope="module", params=TABLES)
def table(request, directory):
    """(the vectors of a balanced part of the table, a grouped split of it)."""
    model, tokenizer = load("stdlib-small")
    assert tokenizer is not None
    data = from_table(tokenizer, directory / f"{request.param}.csv.zst", context=48)
    rng = np.random.default_rng(0)
    size = min(PER_CLASS, *data.counts().values())
    rows = [rng.choice(np.flatnonzero(data.labels == c), size, replace=False) for c in range(2)]
    data = data.take(np.sort(np.concatenate(rows)))
    return gather(model, data, SITES, RULES), group_split(data, test=0.3)


@pytest.mark.parametrize("name", KINDS)
def test_the_auroc_is_that_of_scikit_learn(name, table, tmp_path):
    vectors, split = table
    kind, y, test = KINDS[name], vectors.data.labels, split.test[0]
    scores = fit_probes(kind, vectors, train=split.train).scores(vectors).values[:, :, 0, 0, :, 0]
    scores = scores.reshape(-1, *scores.shape[2:])
    x = vectors.stacked().reshape(len(scores), len(y), -1)
    np.savez(tmp_path / "in.npz", x=x, y=y, train=split.train[0], test=test, C=np.asarray(kind.C))
    run_oracle("sae_probes", "sae_probes_logistic.py", tmp_path / "in.npz", tmp_path / "out.npz")
    theirs = np.load(tmp_path / "out.npz")
    ours = np.asarray([[auroc(s[test], y[test] == 1) for s in of_problem] for of_problem in scores], np.float64)
    np.testing.assert_allclose(ours, theirs["areas"], atol=0.005)
    for of_problem, expected in zip(scores, theirs["scores"], strict=True):
        for found, wanted in zip(of_problem, expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=0.01 * wanted.std())
