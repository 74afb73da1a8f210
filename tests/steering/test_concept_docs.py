"""The code of docs/feature-steering.md and docs/concept-benchmark.md runs as it stands."""

from __future__ import annotations

import numpy as np
import pages
import pytest

from jax_interp.steering.concepts import harmonic_mean


@pytest.mark.slow
def test_the_page_on_features_runs_and_the_best_latent_is_the_one_that_was_measured_best():
    names = pages.run("feature-steering.md")
    rows = names["ranked"].rows
    assert len(rows) == 5
    means = [np.mean(list(row.by_group.values())) for row in rows]
    assert means == sorted(means, reverse=True)
    assert names["vector"].norms()[names["address"]] == pytest.approx(names["highest"][names["latent"]], rel=1e-4)


@pytest.mark.slow
def test_the_page_on_the_benchmark_runs_and_its_scores_are_those_of_its_ratings():
    names = pages.run("concept-benchmark.md")
    ratings, results = names["ratings"], names["results"]
    overall = harmonic_mean(ratings.by_method["prompt"].values)[:, 0, results.reported]
    np.testing.assert_allclose(results.by_method["prompt"].replies, overall)
    assert "bag of words" in names["found"].by_method
