"""Patching over layers and positions: one program against a loop of single runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.circuits import LogitDifference, patch_grid
from jax_interp.core.errors import UserError
from jax_interp.surgery import AddressError, Replace, at, edit, read

SOURCE, TARGET = (batch_at(i, sequences=2, length=6)[0] for i in range(2))
METRICS = {
    "logit difference": LogitDifference(jnp.asarray([3, 4]), 7),
    "plain function": lambda logits: jnp.max(logits[:, 2]),
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_each_entry_is_a_run_with_one_value_replaced(metric):
    model = toy()
    grid = patch_grid(model, SOURCE, TARGET, "resid_post", metric)
    assert grid.shape == (3, 6)
    for layer, pos in ((0, 0), (1, 5), (2, 2)):
        address = f"blocks.{layer}.resid_post"
        value = read(model, address, output=False)(SOURCE)[address]
        by_hand = metric(edit(model, at(address, Replace(value), pos=pos))(TARGET))
        np.testing.assert_allclose(grid[layer, pos], by_hand, rtol=1e-4, atol=1e-5)


def test_the_logit_difference_is_the_mean_over_the_batch():
    logits = jax.random.normal(jax.random.key(0), (2, 6, 9))
    by_hand = (logits[0, 3, 1] - logits[0, 3, 5] + logits[1, 3, 2] - logits[1, 3, 5]) / 2
    np.testing.assert_allclose(LogitDifference(jnp.asarray([1, 2]), 5, pos=3)(logits), by_hand, rtol=1e-6)


def test_what_cannot_be_patched():
    with pytest.raises(UserError, match="the same number of tokens"):
        patch_grid(toy(), SOURCE[:, :5], TARGET, "resid_post", METRICS["plain function"])
    with pytest.raises(AddressError, match="resid_post"):
        patch_grid(toy(), SOURCE, TARGET, "resid_pots", METRICS["plain function"])
