"""The tables of sae-probes as pandas reads them, and k-sparse probes on their texts as scikit-learn fits them."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import run_oracle

from jax_interp import load
from jax_interp.core.logistic import fit_logistic
from jax_interp.data.labelled import read_labelled, tables_in
from jax_interp.dictionaries.evaluation.benchmarks.baselines import compare
from jax_interp.dictionaries.evaluation.benchmarks.measure import DICTIONARY
from jax_interp.dictionaries.evaluation.benchmarks.pooled import Place, pooled_latents
from jax_interp.dictionaries.evaluation.benchmarks.probing import ProbingConfig, k_sparse_probing, splits_of
from jax_interp.dictionaries.evaluation.controls import random_dictionary

pytestmark = pytest.mark.parity
CONFIG = ProbingConfig(ks=(1, 5), splits=2, per_class=60, dense=False)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("oracle") / "tables.json"
    run_oracle("sae_probes", "sae_probes_tables.py", path)
    return json.loads(path.read_text())


def test_all_tables_are_read_as_pandas_reads_them(oracle):
    binary = []
    for path in tables_in(Path(oracle["directory"]) / "cleaned_data"):
        found = read_labelled(path)
        wanted = oracle["tables"].pop(found.name)
        letters = sum(map(len, found.texts))
        got = {"empty": found.left_out, "repeated": found.repeated, "counts": found.counts(), "letters": letters}
        assert got == wanted, found.name
        if len(found.classes) == 2:
            binary.append(found.name)
    assert not oracle["tables"]
    assert len(binary) == 113
    assert sorted(binary) == oracle["binary"]


@pytest.mark.parametrize("name", ["96_spam_is", "87_glue_cola"])
def test_probes_are_those_of_scikit_learn(oracle, tmp_path, name):
    """On texts of the table, with a random dictionary in the packaged model: equal latents, scores and predictions."""
    table = read_labelled(Path(oracle["directory"]) / "cleaned_data" / f"{name}.csv.zst")
    model, tokenizer = load("stdlib-small")
    assert tokenizer is not None
    place = Place(model, "blocks.2.resid_post", tokenizer, context=32)
    dictionary = random_dictionary(jax.random.key(0), 256, 96, k=12)
    rows = [jax.random.normal(jax.random.key(1), (256, 256))]
    found = k_sparse_probing(place, compare(jax.random.key(2), dictionary, rows, reseeds=2), [table], CONFIG)

    rng = np.random.default_rng(CONFIG.seed)
    chosen = [rng.choice(np.flatnonzero(table.labels == c), CONFIG.per_class, replace=False) for c in range(2)]
    z = pooled_latents(place, [dictionary], [table.texts[i] for i in np.concatenate(chosen)])[0]
    y = np.repeat([False, True], CONFIG.per_class)
    train = splits_of(y, CONFIG)
    np.savez(tmp_path / "in.npz", z=z, y=y, train=train, ks=np.asarray(CONFIG.ks))
    run_oracle("sae_probes", "sae_probes_probing.py", tmp_path / "in.npz", tmp_path / "out.npz")
    theirs = np.load(tmp_path / "out.npz")
    for s in range(CONFIG.splits):
        for k in CONFIG.ks:
            latents, scores = theirs[f"chosen_{s}_{k}"], theirs[f"scores_{s}_{k}"]
            np.testing.assert_array_equal(found.chosen[0][s][:k], latents)
            x = jnp.asarray(z[None][:, :, latents])
            ours = fit_logistic(x, jnp.asarray(y[None]), jnp.asarray(train[s][None], jnp.float32)).scores(x)[0]
            np.testing.assert_allclose(ours, scores, atol=2e-3 * np.abs(scores).max())
            clear = np.abs(scores[~train[s]]) > 2e-3 * np.abs(scores).max()
            np.testing.assert_array_equal(found.right[DICTIONARY][k][0][s][clear], theirs[f"right_{s}_{k}"][clear])
