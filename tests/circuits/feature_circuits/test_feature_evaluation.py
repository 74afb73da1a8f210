"""Runs of feature circuits: the ends of the curve, what errors do, bases that must agree, the curve of known nodes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from feature_worlds import contrast_of, dictionaries_for, linear_model, transformer

from jax_interp.circuits import baseline
from jax_interp.circuits.feature_circuits import (
    EffectsConfig,
    EvaluationConfig,
    KeepFeatures,
    circuit_metrics,
    faithfulness_curve,
    feature_effects,
    select_nodes,
)
from jax_interp.core.errors import UserError
from jax_interp.dictionaries import Identity
from jax_interp.surgery import read

SITES = ["blocks.0.mlp_out", "blocks.1.resid_post"]


@pytest.fixture(scope="module")
def world():
    model, contrast = transformer(), contrast_of(64, prompts=4, padded=False)
    saes = dictionaries_for(32, SITES, features=6)
    effects = feature_effects(model, contrast, saes, EffectsConfig("attribution", positions="each"))
    return model, contrast, saes, effects


def test_all_nodes_are_the_model_and_none_are_the_corrupted_run(world):
    model, contrast, saes, effects = world
    every, none = select_nodes(effects, threshold=-1.0), select_nodes(effects, n=0)
    clean, corrupted = baseline(model, contrast)
    run = lambda circuits, **kwargs: circuit_metrics(model, contrast, saes, circuits, **kwargs).values
    patch = EvaluationConfig("patch")
    np.testing.assert_allclose(run([every, none], config=patch), np.stack([clean, corrupted]), atol=2e-5)
    np.testing.assert_allclose(
        run([every, none], config=patch, complement=True), np.stack([corrupted, clean]), atol=2e-5
    )
    kept = run([none], config=EvaluationConfig("patch", errors="keep"))
    assert np.abs(kept - np.asarray(corrupted)).max() > 1e-2  # the errors alone carry something


@pytest.mark.slow
def test_the_empty_circuit_does_not_depend_on_the_basis(world):
    """Mean latents and the mean error write the mean of the value, in every basis."""
    model, contrast, saes, effects = world
    neurons = {address: Identity() for address in saes}
    of_neurons = feature_effects(model, contrast, neurons, EffectsConfig("attribution", positions="each"))
    empty = [
        circuit_metrics(model, contrast, dictionaries, [select_nodes(e, n=0)]).values
        for dictionaries, e in ((saes, effects), (neurons, of_neurons))
    ]
    np.testing.assert_allclose(*empty, atol=2e-5)


def test_an_edit_that_keeps_all_changes_no_bit(world):
    model, contrast, saes, _ = world
    x = read(model, SITES[0])(contrast.clean)[1][SITES[0]]
    edit = KeepFeatures(saes[SITES[0]], jnp.ones(6, bool), jnp.ones((), bool), jnp.zeros(()), jnp.zeros(()))
    np.testing.assert_array_equal(edit(x), x)


def test_the_curve_of_a_linear_model_rises_with_its_effects():
    """The model is linear after its last site, so the metric of a circuit is the sum of the effects of its nodes."""
    model, contrast = linear_model(), contrast_of(9, prompts=6)
    address = "blocks.1.resid_post"
    saes = dictionaries_for(6, [address])
    effects = feature_effects(model, contrast, saes, EffectsConfig("attribution"))
    found = faithfulness_curve(
        model, contrast, {"features": (saes, effects)}, (1, 3, 9), EvaluationConfig("patch"), random=2
    )
    curve = found.curve().sel(basis=0)
    size = np.append(effects.latents[0], effects.errors[0])
    order = np.argsort(-np.abs(size))
    expected = [size[order[:n]].sum() / size.sum() for n in (1, 3, 9)]
    np.testing.assert_allclose(curve.sel(quantity=0, estimate=0).values, expected, rtol=1e-4)
    np.testing.assert_allclose(
        curve.sel(quantity=1, estimate=0).values, [1 - e for e in expected], rtol=1e-4, atol=1e-4
    )
    assert found.metric.axes["basis"] == ("features", "random features 1", "random features 2")
    assert (curve.sel(estimate=1).values <= curve.sel(estimate=0).values + 1e-6).all()
    np.testing.assert_allclose(found.curve().sel(n=2).values[:, 0, 0], 1.0, rtol=1e-4)  # all nodes, in any order


def test_padding_is_no_part_of_a_mean():
    model, contrast = transformer(), contrast_of(64, padded=True)
    saes = dictionaries_for(32, [SITES[0]], features=4)
    effects = feature_effects(model, contrast, saes, EffectsConfig("attribution"))
    none = select_nodes(effects, n=0)
    other = contrast.corrupted.at[1, 0].set(5)  # a padded token
    changed = type(contrast)(contrast.clean, other, contrast.metric, contrast.mask)
    a, b = (circuit_metrics(model, c, saes, [none]).values for c in (contrast, changed))
    np.testing.assert_array_equal(a, b)


def test_wrong_settings_are_refused(world):
    model, contrast, saes, effects = world
    with pytest.raises(UserError, match="choose mean"):
        EvaluationConfig("median")  # pyright: ignore
    with pytest.raises(UserError, match="choose circuit"):
        EvaluationConfig(errors="drop")  # pyright: ignore
    with pytest.raises(UserError, match="no circuit"):
        circuit_metrics(model, contrast, saes, [])
    with pytest.raises(UserError, match="from 1"):
        faithfulness_curve(model, contrast, {"features": (saes, effects)}, ())
