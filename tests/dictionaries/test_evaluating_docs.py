"""The code of docs/evaluating-dictionaries.md runs as it stands, and the controls come out in the order it says."""

from __future__ import annotations

import jax
import numpy as np
import pages
import pytest


@pytest.mark.slow
def test_the_page_runs():
    names = pages.run("evaluating-dictionaries.md")
    assert jax.tree.structure(names["same"]) == jax.tree.structure(names["small"])
    assert (names["contexts"].peak[0] >= 0).all()
    a_downloaded_one(names["from_tensors"])
    fvu = names["fvu"]
    assert fvu["principal components"] < fvu["neurons"]
    assert fvu["random, decoder fitted"] < fvu["random"]
    assert fvu["random, decoder fitted, codes searched"] < fvu["random, decoder fitted"]
    np.testing.assert_allclose(names["scales"], 1, atol=0.05)
    assert (np.diff(names["pareto"]) < 1e-3).all()


def a_downloaded_one(from_tensors):
    """What the page makes of published tensors, against the published formulas."""
    rng = np.random.default_rng(0)
    W_enc, W_dec = rng.normal(size=(6, 10)).astype(np.float32), rng.normal(size=(10, 6)).astype(np.float32)
    b_enc, b_dec = rng.normal(size=10).astype(np.float32), rng.normal(size=6).astype(np.float32)
    x, threshold = rng.normal(size=(5, 6)).astype(np.float32), rng.uniform(0.5, 1.5, 10).astype(np.float32)
    pre = x @ W_enc + b_enc
    fourth = np.sort(pre, axis=1)[:, -4:-3]
    centred = (x - b_dec) @ W_enc + b_enc
    for made, z in (
        (from_tensors(W_enc, b_enc, W_dec, b_dec, threshold), np.where(pre > threshold, pre, 0)),
        (from_tensors(W_enc, b_enc, W_dec, b_dec, k=4), np.where(pre >= fourth, np.maximum(pre, 0), 0)),
        (from_tensors(W_enc, b_enc, W_dec, b_dec, centred=True), np.maximum(centred, 0)),
    ):
        np.testing.assert_allclose(made.encode(x), z, atol=1e-5)
        np.testing.assert_allclose(made(x), z @ W_dec + b_dec, atol=1e-4)
