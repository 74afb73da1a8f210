"""Model surgery: parts are found by class or by path, in every layout, and replaced."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jax_interp.models.layers import Linear
from jax_interp.models.mlp import MLP
from jax_interp.surgery import Zero, at, depth_of, edit, read, replan
from jax_interp.surgery.select import SelectionError, replace, select, skip_block

call = jax.jit(lambda f, *args: f(*args))


def silent(part):
    return jax.tree.map(jnp.zeros_like, part)


@pytest.mark.parametrize("what", [MLP, "blocks.*.mlp"])
def test_all_mlps_are_replaced_by_class_or_path(model, tokens, what):
    got = call(replace(model, what, silent), tokens)
    chex.assert_trees_all_close(got, call(edit(model, at("blocks.*.mlp_out", Zero())), tokens), rtol=1e-6, atol=1e-6)


def test_one_layer_is_replaced_where_it_is_unrolled(base, tokens):
    with pytest.raises(SelectionError, match=r"replan\(model, unroll=2\)"):
        replace(base, "blocks.2.mlp", silent)
    apart = replan(base, 2)
    got = call(replace(apart, "blocks.2.mlp", silent), tokens)
    chex.assert_trees_all_close(got, call(edit(base, at("blocks.2.mlp_out", Zero())), tokens), rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(call(apart, tokens), call(base, tokens))


class LoRA(nnx.Module):
    """A Linear plus a low-rank product, which names its own value."""

    def __init__(self, linear, key, rank=2):
        d_in, d_out = linear.weight[...].shape
        self.linear = linear
        self.a = nnx.Param(jax.random.normal(key, (d_in, rank)) / 8)
        self.b = nnx.Param(jnp.zeros((rank, d_out)))

    def __call__(self, x, site, *args):
        inner = site("low_rank", x @ self.a[...], "batch pos rank")
        return self.linear(x, site, *args) + inner @ self.b[...]


def test_lora_on_every_query_projection_is_neutral_then_trained_alone(base, tokens):
    wrap = jax.vmap(lambda linear, key: LoRA(linear, key))
    keys = jax.random.split(jax.random.key(0), depth_of(base.blocks))
    adapted = replace(base, "blocks.*.attn.q", lambda linear: wrap(linear, keys))
    chex.assert_trees_all_close(call(adapted, tokens), call(base, tokens), rtol=1e-6, atol=1e-6)
    _, acts = call(read(adapted, "blocks.*.attn.q.low_rank"), tokens)
    chex.assert_shape(acts["blocks.*.attn.q.low_rank"], (depth_of(base.blocks), *tokens.shape, 2))
    selection = select(adapted).at_instances_of(LoRA)
    assert selection.count() == 1, "one stacked part stands for all layers"
    grads = jax.jit(jax.grad(lambda m: jnp.sum(m(tokens)[..., 3])))(adapted)
    lora = select(grads).at_instances_of(LoRA).get()
    assert jnp.any(lora.b[...])
    assert not jnp.any(lora.a[...]), "its other factor is zero"


def test_a_class_or_path_that_selects_nothing_says_what_there_is(base):
    with pytest.raises(SelectionError, match="no part of class Conv"):
        replace(base, nnx.Conv, silent)
    with pytest.raises(SelectionError, match="Did you mean mlp"):
        replace(base, "blocks.*.mpl", silent)
    with pytest.raises(SelectionError, match="Did you mean embed"):
        replace(base, "embd", silent)
    with pytest.raises(SelectionError, match="selects nothing"):
        replace(base, "blocks", silent)


def test_skipping_a_block_is_leaving_it_out(base, tokens):
    shorter = skip_block(base, 2)
    assert depth_of(shorter.blocks) == depth_of(base.blocks) - 1
    both = edit(base, at("blocks.2.attn_out", Zero()), at("blocks.2.mlp_out", Zero()))
    chex.assert_trees_all_close(call(shorter, tokens), call(both, tokens), rtol=1e-6, atol=1e-6)
    with pytest.raises(SelectionError, match="no block 9"):
        skip_block(base, 9)


def test_every_linear_is_found(base):
    assert select(base).at_instances_of(Linear).count() == 7
