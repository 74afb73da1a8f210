"""The induction toy: sequences that repeat, attention to what came after, and heads that learn it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.models import init
from jax_interp.surgery import Replace, at, edit, read
from jax_interp.toys.induction import (
    InductionConfig,
    attention_scores,
    induction_loss,
    repeated_sequences,
    train_induction,
)

CONFIG = InductionConfig()


def test_sequences_repeat_with_their_own_periods():
    tokens, period = jax.jit(lambda key: repeated_sequences(key, 50, CONFIG))(jax.random.key(0))
    assert len(set(period.tolist())) > 5
    for row, length in zip(np.asarray(tokens), np.asarray(period)):
        assert len(set(row[:length])) == length
        np.testing.assert_array_equal(row[length:], row[:-length])


def test_scores_of_attention_that_is_known():
    """Patterns put in place: all on the previous token, all on what came after the last time."""
    model = jax.jit(lambda key: init(CONFIG.model, key, stacked=False))(jax.random.key(0))
    tokens, period = jax.jit(lambda key: repeated_sequences(key, 6, CONFIG))(jax.random.key(1))
    pos = np.arange(32)
    back = np.maximum(pos - 1, 0)
    previous = np.broadcast_to(np.eye(32)[back][None, None], (6, 2, 32, 32))
    after = np.stack([np.eye(32)[np.where(pos >= n, pos - n + 1, 0)] for n in np.asarray(period)])
    model = edit(
        model,
        at("blocks.0.attn.pattern", Replace(jnp.asarray(previous, jnp.float32))),
        at("blocks.1.attn.pattern", Replace(jnp.asarray(np.repeat(after[:, None], 2, axis=1), jnp.float32))),
    )
    found = jax.jit(lambda model, *data: attention_scores(model, *data))(model, tokens, period)
    np.testing.assert_allclose(found["previous"][0], 1)
    np.testing.assert_allclose(found["induction"][1], 1)
    assert (found["previous"][1] < 0.3).all()


@pytest.mark.slow
def test_two_layers_learn_induction():
    model = train_induction(jax.random.key(0))
    tokens, period = repeated_sequences(jax.random.key(5), 256, CONFIG)
    found = attention_scores(model, tokens, period)
    assert float(induction_loss(model, tokens, period)) < 0.05  # ln 32 = 3.47 without looking back
    assert float(found["induction"][1].max()) > 0.5
    assert read(model, "blocks.0.attn.z")(tokens)[0].shape == (256, 32, 32)
