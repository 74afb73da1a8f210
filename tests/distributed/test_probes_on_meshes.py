"""Every kind of probe that is fitted on a mesh is the one of a single device."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest

from jax_interp.probes import KINDS, All, LabelledTokens, Last, Sequences, Vectors, fit_probes
from jax_interp.training.sharding import make_mesh

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real")

MESHES = {
    "2 × data": {"data": 2},
    "2 × fsdp": {"fsdp": 2},
    "2 × tensor, automatic": {"tensor": 2, "explicit": False},
}
FAST: dict[str, dict] = {"CCS": {"steps": 30, "tries": 2}, "KSparse": {"k": 3}}
"""Settings of kinds in these tests, where the defaults take long or do not fit the data."""
N, POS, D = 42, 4, 6  # 21 pairs, which two devices do not divide


def activations(kind) -> Vectors | Sequences:
    """Activations in which the labels of a kind can be read, with noise."""
    rng, number = np.random.default_rng(0), np.arange(N)
    classes = 3 if kind.target == "classes" else 2
    labels = number % 3 if kind.target == "classes" else (number + number // 2) % 2
    y = labels.astype(np.float32) if kind.target == "number" else labels.astype(np.int32)
    mask = np.ones((N, POS), bool)
    data = LabelledTokens(
        "planted", np.zeros((N, POS), np.int32), mask, mask, y,
        () if kind.target == "number" else tuple(f"class {i}" for i in range(classes)),
        pairs=number.reshape(-1, 2), token_labels=np.repeat(labels[:, None], POS, 1).astype(np.int32),
    )  # fmt: skip
    x = rng.normal(size=(3, D))[labels][:, None] + rng.normal(size=(N, POS, D))
    if kind.takes == "sequences":
        return Sequences(data, All(), mask, {"x": x.astype(np.float32), "y": np.tanh(x).astype(np.float32)})
    return Vectors(data, (Last(),), {"x": x[None, :, -1].astype(np.float32), "y": x[None, :, 0].astype(np.float32)})


def kind_of(name: str):
    return KINDS[name](**FAST.get(name, {}))


@cache
def alone(name: str) -> np.ndarray:
    kind, train = kind_of(name), np.arange(N) % 14 > 1
    on = activations(kind)
    return np.asarray(fit_probes(kind, on, train=train).scores(on).values)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", KINDS.names())
def test_a_fit_on_a_mesh_is_that_of_one_device(name, mesh):
    kind, train = kind_of(name), np.arange(N) % 14 > 1
    on = activations(kind)
    there = fit_probes(kind, on, train=train, place=make_mesh(**MESHES[mesh]))
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(there.probes))
    scores = np.asarray(there.scores(on).values)
    np.testing.assert_allclose(scores, alone(name), atol=3e-3 * np.std(alone(name)))


def test_logistic_regression_on_a_mesh():
    """The quick part of the law above, with all axes and two sites at once."""
    from jax_interp.probes import Logistic

    kind = Logistic(C=(0.1, 10.0))
    on = activations(kind)
    splits = np.stack([np.arange(N) % 14 > 1, np.arange(N) % 10 > 1])
    labels = {"own": on.data.labels, "turned": np.roll(on.data.labels, 1)}
    fits = [
        fit_probes(kind, on, train=splits, labels=labels, seeds=(0, 1), at_once=at_once, place=place)
        for at_once, place in ((1, None), (2, None), (1, make_mesh(data=2, fsdp=2)))
    ]
    one, *others = [fit.scores(on).values for fit in fits]
    assert one.shape == (2, 1, 2, 2, 2, 2, N)
    for other in others:
        np.testing.assert_allclose(other, one, atol=1e-4 * np.abs(one).max())
