"""ACDC, importance and trained masks on additive units, whose right answer is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from additive_units import additive

from jax_interp.circuits.discovery.acdc import acdc
from jax_interp.circuits.discovery.hard_concrete import kept, sample
from jax_interp.circuits.discovery.importance import importance
from jax_interp.circuits.discovery.pruning import PruningConfig, prune_by_masks
from jax_interp.circuits.evaluation.ranking import roc
from jax_interp.core.errors import UserError

WEIGHTS = np.array([3.0, 0.02, 1.0, 0.3, 0.0, 0.1])
CASE = additive(WEIGHTS, [0.5, -0.5, 1.0])


@pytest.mark.parametrize("together", [True, False])
def test_acdc_removes_what_changes_the_loss_less_than_the_threshold(together):
    found = acdc(*CASE, thresholds=[0.01, 0.05, 0.5, 5.0], loss="metric", together=together)
    for tau, keep in zip(found.thresholds, found.keep):
        np.testing.assert_array_equal(keep, tau <= WEIGHTS)
    np.testing.assert_allclose(found.scores, (WEIGHTS[:, None] >= np.array(found.thresholds)).mean(axis=1))
    # the loss is minus the metric of what is left after each unit, judged from the last to the first
    left = np.array([WEIGHTS[: i + 1].sum() + WEIGHTS[i + 1 :][WEIGHTS[i + 1 :] >= 0.05].sum() for i in range(6)])
    left -= np.where(WEIGHTS < 0.05, WEIGHTS, 0.0)
    np.testing.assert_allclose(found.loss.values[1], -left - 1 / 3, rtol=1e-5)


def test_importance_is_the_gradient_with_respect_to_the_mask():
    np.testing.assert_allclose(importance(*CASE), np.abs(WEIGHTS), rtol=1e-6)
    each_layer = importance(*CASE, normalise=True)
    np.testing.assert_allclose([np.linalg.norm(each_layer[::2]), np.linalg.norm(each_layer[1::2])], 1, rtol=1e-6)


def test_the_hard_concrete_distribution():
    log_alpha = jnp.array([-3.0, 0.0, 2.0])
    draws = sample(jax.random.key(0), jnp.broadcast_to(log_alpha, (20_000, 3)))
    assert float(draws.min()) == 0.0
    assert float(draws.max()) == 1.0
    np.testing.assert_allclose((draws != 0).mean(axis=0), kept(log_alpha), atol=0.01)
    at_one = jax.nn.sigmoid(log_alpha + 2 / 3 * np.log(0.1 / 1.1))  # P(z = 1), by the symmetry of the distribution
    np.testing.assert_allclose((draws == 1).mean(axis=0), at_one, atol=0.01)


def test_trained_masks_keep_the_largest_units_and_reach_the_target():
    config = PruningConfig(steps=200, learning_rate=0.1, multiplier_rate=0.1, loss="metric")
    found = prune_by_masks(*CASE, [2 / 6, 4 / 6], config)
    np.testing.assert_array_equal(found.keep, [WEIGHTS >= 1.0, WEIGHTS >= 0.1])
    assert roc(found.scores[0], WEIGHTS >= 1.0).auc == 1.0
    assert abs(found.history.values[1, -1, 1] - 4 / 6) < 0.15


def test_a_stopped_training_goes_on_bit_by_bit():
    config = PruningConfig(steps=60, loss="metric", batch=2)
    start = np.arange(6.0)
    whole = prune_by_masks(*CASE, [0.5], config, start=start, seed=3)
    model, contrast, units = CASE
    # `steps` also sets when the target is reached, so the first part is the whole run, stopped by hand
    from jax_interp.circuits.discovery import pruning

    state = pruning._first_state(units, 1, config, start, 3)
    state, _ = pruning._train(model, contrast, state, jnp.array([0.5]), units=units, config=config, sign=-1, steps=25)
    rest = prune_by_masks(*CASE, [0.5], config, state=state)
    np.testing.assert_array_equal(rest.scores, whole.scores)
    ranks = np.argsort(np.argsort(-np.asarray(pruning._first_state(units, 1, config, start, 0).log_alpha[0])))
    np.testing.assert_array_equal(ranks, [5, 4, 3, 2, 1, 0])


def test_a_fixed_price_drops_units_that_are_worth_less():
    config = PruningConfig(steps=300, learning_rate=0.1, loss="metric", price="fixed", initial=0.0)
    found = prune_by_masks(*CASE, [6 * 1.0, 6 * 3.0], config)  # a unit costs price / 6
    np.testing.assert_array_equal(found.keep, [WEIGHTS >= 1.0, WEIGHTS >= 3.0])


def test_wrong_requests_are_refused():
    with pytest.raises(UserError, match="finite numbers"):
        acdc(*CASE, thresholds=[])
    with pytest.raises(UserError, match="choose kl"):
        acdc(*CASE, thresholds=[0.1], loss="accuracy")
    with pytest.raises(UserError, match="has no static `pos`"):
        acdc(*CASE, thresholds=[0.1])
    with pytest.raises(UserError, match="shares of units"):
        prune_by_masks(*CASE, [1.5], PruningConfig(loss="metric"))
    with pytest.raises(UserError, match="not finite"):
        acdc(*additive(WEIGHTS * np.nan, [0.0, 1.0]), thresholds=[0.1], loss="metric")
