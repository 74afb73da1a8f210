"""Directions of all layers are those of steering-vectors: its mean, PCA and logistic aggregators."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import run_oracle

from jax_interp.models import load
from jax_interp.steering import Questions
from jax_interp.steering.finding import (
    LogisticDirection,
    MeanDifference,
    PairedPCA,
    find_directions,
    pairs_of_questions,
)

pytestmark = pytest.mark.parity

METHODS = {
    "mean": MeanDifference(),
    "pca": PairedPCA(),
    "logistic": LogisticDirection(centre_pairs=True),
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steering_vectors")
    run_oracle("pyvene", "steering_vectors_directions.py", folder)
    with np.load(folder / "directions.npz") as arrays:
        return load(folder / "model")[0], dict(arrays)


@pytest.fixture(scope="module")
def ours(theirs):
    model, arrays = theirs
    rows = [[row[:n].tolist() for row, n in zip(side, arrays["lengths"], strict=True)] for side in arrays["tokens"]]
    prompts = tuple(tuple(row[:-2]) for row in rows[0])
    matching, other = (tuple(tuple(row[-2:]) for row in side) for side in rows)
    data = pairs_of_questions(Questions("pairs", prompts, matching, other))
    return find_directions(model, data, list(METHODS.values()))


@pytest.mark.parametrize("name", METHODS)
def test_all_layers_are_those_of_steering_vectors(theirs, ours, name):
    """Also the sign of the component: it points to the side where most of the differences do, in both."""
    wanted = theirs[1][name]
    assert np.linalg.norm(wanted, axis=-1).min() > 0.01
    found = np.stack([np.asarray(v) for v in ours.vector(method=METHODS[name]).vectors.values()])
    np.testing.assert_allclose(found, wanted, atol={"mean": 2e-6, "pca": 2e-4, "logistic": 2e-3}[name])
