"""Activation addition: a closed form at each position, prompts shorter than the vectors, padding, generation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.models import generate
from jax_interp.steering.finding import activation_addition
from jax_interp.surgery import edit, values_at
from tests.small_models import GPT2_LIKE, peaky

SITE, SPACE = "blocks.1.resid_pre", 9


@pytest.fixture(scope="module")
def model():
    return peaky(GPT2_LIKE)


@pytest.fixture(scope="module")
def added(model):
    return activation_addition(model, [1, 30, 31], [1, 32], SITE, pad_id=SPACE)


@jax.jit
def value(model, tokens, mask):
    return values_at(model, SITE)(tokens, mask=mask)[SITE]


def test_the_first_positions_of_each_prompt_are_steered(model, added):
    pair = jnp.asarray([[1, 30, 31], [1, 32, SPACE]])
    wanted = value(model, pair, jnp.ones_like(pair, bool))
    np.testing.assert_allclose(added.vectors[SITE], wanted[0] - wanted[1], atol=1e-5)
    tokens = jnp.asarray([[40, 41, 42, 43, 44], [0, 0, 0, 45, 46]])  # the second row is padded on the left
    mask = jnp.asarray([[True] * 5, [False] * 3 + [True] * 2])
    change = value(edit(model, *added.edits(2.0)), tokens, mask) - value(model, tokens, mask)
    vectors = 2 * np.asarray(added.vectors[SITE])
    np.testing.assert_allclose(change[0, :3], vectors, atol=1e-5)
    np.testing.assert_array_equal(change[0, 3:], 0)
    np.testing.assert_allclose(change[1, 3:], vectors[:2], atol=1e-5)


def test_new_tokens_are_not_steered(model, added):
    """The prompt has two tokens and the vectors have three: the first new token is at the third position."""
    steered = edit(model, *added.edits(3.0))
    new = np.asarray(generate(steered, jnp.asarray([[40, 41]]), 3))
    short = activation_addition(model, [1, 30], [1, 32], SITE)  # the same first two vectors: the model is causal
    np.testing.assert_array_equal(new, generate(edit(model, *short.edits(3.0)), jnp.asarray([[40, 41]]), 3))


def test_what_is_refused(model):
    with pytest.raises(UserError, match="3 and 2 tokens: give pad_id="):
        activation_addition(model, [1, 2, 3], [1, 2], SITE)
    with pytest.raises(UserError, match="difference is 0"):
        activation_addition(model, [1, 2], [1, 2], SITE)
    with pytest.raises(UserError, match="at least one token"):
        activation_addition(model, [], [1, 2], SITE)
