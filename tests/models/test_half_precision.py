"""A float16 model computes what the float32 model with the same weights computes, to 16 bits, in every path."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, peaky

from jax_interp import generate, read
from jax_interp.core.leaves import flatten
from jax_interp.models.language_modelling import next_token_loss, per_token_losses

PATHS = ["fused", "pattern", "eager", "cached", "generate"]


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """A float16 model, and the float32 model with the same weights."""
    narrow = peaky(CONFIGS[request.param], dtype=jnp.float16)
    return narrow, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)


def logits_by(path, call, model, tokens):
    if path == "pattern":
        return call(read(model, "blocks.*.attn.pattern"), tokens)[0]
    if path == "eager":
        return model(tokens)
    if path == "cached":
        first, cache = jax.jit(lambda model, tokens: model(tokens, cache=9))(model, tokens[:, :4])
        return jnp.concatenate([first, call(model, tokens[:, 4:], cache=cache)[0]], axis=1)
    return call(model, tokens)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_gives_the_logits_of_float32(path, pair, call, tokens):
    narrow, exact = pair
    if path == "generate":  # the token that is chosen is the likeliest, to 16 bits
        token = np.asarray(generate(narrow, tokens, 1))
        right = call(exact, tokens)[:, -1]
        np.testing.assert_allclose(np.take_along_axis(right, token, axis=1)[:, 0], right.max(axis=1), atol=0.02)
        return
    got = logits_by(path, call, narrow, tokens)
    assert got.dtype == jnp.float16
    np.testing.assert_allclose(got.astype(jnp.float32), call(exact, tokens), atol=0.02)


def test_the_loss_and_its_gradient(pair, tokens):
    (loss, grads), (right, exact) = (jax.jit(jax.value_and_grad(next_token_loss))(model, tokens) for model in pair)
    np.testing.assert_allclose(loss, right, rtol=2e-3)
    for name, gradient in flatten(exact).items():
        near = max(0.02 * float(jnp.abs(gradient).max()), 1e-4)  # the gradient of a key's bias is zero
        np.testing.assert_allclose(flatten(grads)[name].astype(jnp.float32), gradient, atol=near, err_msg=name)


def test_evaluation(pair, tokens):
    narrow, exact = (per_token_losses(model, np.asarray(tokens)) for model in pair)
    np.testing.assert_allclose(narrow, exact, atol=0.02)
