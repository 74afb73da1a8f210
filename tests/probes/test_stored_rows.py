"""Probes on the rows of an activation store."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.data.activation_shards import StoreLayout
from jax_interp.data.activation_writing import write_activation_store
from jax_interp.probes import MassMean, fit_probes, gather_rows, host_memory
from tests.toy import batch_at, toy


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    sites = ("blocks.0.resid_post", "blocks.1.resid_post")
    layout = StoreLayout(shard_rows=64, dtype="float32")
    return write_activation_store(
        tmp_path_factory.mktemp("acts"), toy(), sites, batch_at, rows=200, layout=layout, quiet=True
    )


def test_rows_are_examples_at_the_sites_of_the_store(store):
    rows, labels = np.asarray([150, 3, 60, 61, 3]), ["a", "b", "a", "b", "b"]
    vectors = gather_rows(store, labels, rows=rows, groups=[0, 1, 2, 2, 3])
    whole = np.concatenate(list(store.in_order(64)))
    assert vectors.sites == store.addresses
    for i, site in enumerate(vectors.sites):
        np.testing.assert_array_equal(vectors.values[site][0], whole[rows, 16 * i : 16 * (i + 1)])
    assert vectors.data.groups is not None
    assert vectors.data.groups.tolist() == [0, 1, 2, 2, 1]  # a row that is read twice is one group
    x, y = vectors.values[vectors.sites[1]][0], vectors.data.labels
    fitted = fit_probes(MassMean(), vectors).probe(site=vectors.sites[1])
    np.testing.assert_allclose(
        fitted.direction(), x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": [0, 1]}, "200 rows need as many labels"),
        ({"labels": [0, 1], "rows": np.asarray([0, 200])}, "numbers from 0 to 199"),
        ({"labels": [0, None], "rows": np.asarray([0, 1])}, "example 1 has no label"),
    ],
)
def test_what_does_not_fit_is_refused(store, more, message):
    with pytest.raises(UserError, match=message):
        gather_rows(store, **more)


def test_rows_that_exceed_the_memory_are_refused(store, monkeypatch):
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match="give fewer rows="):
        gather_rows(store, [0, 1] * 100)
