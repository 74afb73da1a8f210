"""Linear readability: figures that are known in closed form, and the random layer in which every AND can be read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.probes.readability import linear_readability
from jax_interp.toys.universal_and import universal_and


@pytest.fixture(scope="module")
def gaussian():
    rng = np.random.default_rng(0)
    return rng.standard_normal((1200, 12)), np.arange(1200) % 3 > 0, rng


def test_a_linear_function_is_read_without_error(gaussian):
    x, train, rng = gaussian
    found = linear_readability(x, x @ np.arange(12.0) + 5, train, penalty=1e-9)
    assert found.sup_error < 1e-6
    assert found.r2 == pytest.approx(1)
    assert found.balanced_accuracy is None
    noisy = linear_readability(x, x[:, 0] + rng.standard_normal(1200), train)
    assert noisy.r2 == pytest.approx(0.5, abs=0.08)
    assert noisy.p95_error == pytest.approx(1.96, abs=0.25)  # of a standard normal error


def test_a_label_that_is_there_is_cheap_and_one_that_is_not_costs_a_bit_a_row(gaussian):
    x, train, rng = gaussian
    there = linear_readability(x, (x[:, 0] > 0).astype(int), train)
    absent = linear_readability(x, rng.integers(0, 2, 1200), train)
    found, other = there.to_json(), absent.to_json()
    assert found["balanced_accuracy"] > 0.97
    assert found["selectivity"] > 0.4
    assert abs(other["selectivity"]) < 0.1
    assert found["compression"] > 4
    assert 0.8 < other["compression"] <= 1.02
    assert other["shuffled_codelength"] == pytest.approx(other["codelength"], rel=0.2)
    assert found["uniform_codelength"] == 800
    assert list(found["curve"])[-1] == 800
    assert found["curve"][800] > found["curve"][8]


@pytest.mark.slow
def test_xor_is_read_from_a_random_layer_and_not_from_its_input():
    """Binary features: XOR has no linear part (R² 0), and one layer of conjunctions makes it readable."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (1200, 12)).astype(np.float32)
    xor = bits[:, 0] != bits[:, 1]
    train = np.arange(1200) < 800
    before = linear_readability(bits, xor, train)
    model = universal_and(jax.random.key(0), 12, 160, 0.3)
    after = linear_readability(np.asarray(model(jnp.asarray(bits))), xor, train)
    assert before.r2 < 0.05
    assert before.balanced_accuracy == pytest.approx(0.5, abs=0.12)
    assert before.p95_error == pytest.approx(0.5, abs=0.15)
    assert after.balanced_accuracy == 1
    assert after.p95_error < 0.2 < before.p95_error


def test_constant_columns_and_bad_input(gaussian):
    x, train, _ = gaussian
    with_constant = np.c_[x[:, :-1], np.full(1200, 1e4)]
    same = linear_readability(with_constant, x[:, 0] > 0, train).to_json()
    alone = linear_readability(np.c_[x[:, :-1], np.zeros(1200)], x[:, 0] > 0, train).to_json()
    assert {k: v for k, v in same.items() if isinstance(v, float)} == pytest.approx(
        {k: v for k, v in alone.items() if isinstance(v, float)}, rel=1e-3
    )
    with pytest.raises(UserError, match="not constant"):
        linear_readability(x, np.ones(1200), train)
    with pytest.raises(UserError, match="not finite"):
        linear_readability(np.where(x > 3, np.nan, x), x[:, 0], train)
    with pytest.raises(UserError, match="one entry for each row"):
        linear_readability(x, x[:5, 0], train)
