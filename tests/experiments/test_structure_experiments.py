"""The closed forms behind the experiments on what is linearly readable."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).parents[2]))  # the experiments are no part of the installed package

from experiments.universal_and_bound import largest_errors
from experiments.xor_of_features import held_out_logit


@pytest.mark.parametrize("s", [0.7, 1.0, 1.2, 1.25, 2.0])
def test_the_fourth_cell_is_wrong_up_to_a_strength_of_the_root_of_one_and_a_half(s):
    assert held_out_logit(s) == pytest.approx((3 - 2 * s * s) / (1 + 2 * s * s), abs=1e-9)
    assert (held_out_logit(s) > 0) == (s < np.sqrt(1.5))
    points = np.array([[a, b, -s * a * b] for a in (1, -1) for b in (1, -1)])
    wanted = points[:, 2] / s
    margin = {"type": "ineq", "fun": lambda v: wanted[:3] * (points[:3] @ v[:3] + v[3]) - 1}
    found = minimize(
        lambda v: v[:3] @ v[:3], np.ones(4), constraints=[margin], tol=1e-12
    ).x  # SciPy's quadratic program
    assert -wanted[3] * (points[3] @ found[:3] + found[3]) == pytest.approx(held_out_logit(s), abs=1e-4)


def test_the_largest_error_is_that_of_all_inputs():
    n, neurons = 6, 60
    sets = np.random.default_rng(0).random((n, neurons)) < np.log(n) ** 2 / np.sqrt(neurons)
    worst = {1: 0.0, 0: 0.0}
    for k in range(n):
        for l in range(k):
            post = np.maximum(sets[k].astype(float) + sets[l] - 1, 0)
            for i in range(n):
                for j in range(i):
                    on = len({i, j} & {k, l})
                    error = abs(post[sets[i] & sets[j]].mean() - (on == 2))
                    if on == 2:
                        assert error == 0
                    else:
                        worst[on] = max(worst[on], error)
    assert largest_errors(n, neurons, np.random.default_rng(0)) == pytest.approx((worst[1], worst[0]))
