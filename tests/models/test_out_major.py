"""For the steps of generation on a CPU, matrices are stored output by output: the same tokens and values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.core.linear import Linear, few_rows_product
from jax_interp.models import generate
from jax_interp.models.generation import out_major, unstacking
from jax_interp.models.generation.out_major import OutMajor, for_steps, stepping_model
from jax_interp.surgery import Scale, Zero, at, edit, get_block, read, replan

TOKENS = jnp.asarray([[5, 9, 33, 2, 17], [1, 8, 8, 30, 3]])


@pytest.fixture
def for_all(monkeypatch):
    """Transpose small matrices too."""
    monkeypatch.setattr(out_major, "SMALLEST_LAYER", 0)


@pytest.mark.parametrize(
    "config", [GPT2_LIKE, pytest.param(LLAMA_LIKE, marks=pytest.mark.slow)], ids=["biases", "none"]
)
def test_generation_gives_the_same_tokens_and_values(config, monkeypatch):
    model = replan(peaky(config), "*")
    changed = edit(model, at("blocks.1.attn.result", Zero(), head=1), at("blocks.2.q_input", Scale(0.5), head=0))
    reading = read(changed, "blocks.*.resid_post", "blocks.0.mlp.post")
    tokens, acts = generate(reading, TOKENS, 8)
    monkeypatch.setattr(out_major, "SMALLEST_LAYER", 0)
    monkeypatch.setattr(out_major, "FEWEST_STEPS", 1)
    stepping = stepping_model(reading, 2, 8)
    again, values = generate(reading, TOKENS, 8)
    assert isinstance(get_block(stepping, 0).mlp.up, OutMajor)
    np.testing.assert_array_equal(tokens, again)
    for address, value in acts.items():
        np.testing.assert_allclose(value, values[address], atol=1e-4, err_msg=address)


def test_it_is_not_done_where_it_saves_nothing(for_all):
    model = replan(peaky(LLAMA_LIKE), "*")
    same = lambda rows=8, steps=64: for_steps(model, rows, steps) is model
    assert not same()
    assert same(rows=1)
    assert same(rows=17)
    assert same(steps=4)
    assert for_steps(peaky(LLAMA_LIKE), 8, 64).blocks[0].block.mlp.up.weight.shape == (3, 32, 48), "stacks stay"
    inside = jax.jit(lambda model: isinstance(get_block(for_steps(model, 8, 64), 0).mlp.up, Linear) + 0)
    assert int(inside(model)) == 1, "traced weights stay"
    assert unstacking.SMALLEST_LAYER > 0


@pytest.mark.parametrize("layout", ["*", "0:2,2"], ids=["one block and a stack", "a stack and one block"])
def test_long_texts_of_small_edited_stacks_stay_as_they_are(layout, for_all):
    """Their cache has the layout of the stack, so the steps must have it too."""
    model = peaky(LLAMA_LIKE)
    assert stepping_model(edit(model, at("blocks.1.mlp_out", Scale(0.5))), 8, 64) is None
    tokens = generate(edit(model, at("blocks.1.mlp_out", Scale(0.5))), TOKENS, 25)
    assert tokens.shape == (2, 25)


def test_the_product_of_few_rows_is_the_product():
    x, weight = jax.random.normal(jax.random.key(0), (4, 3, 8)), jax.random.normal(jax.random.key(1), (11, 8))
    np.testing.assert_allclose(few_rows_product(x, weight), x @ weight.T, atol=1e-5)
