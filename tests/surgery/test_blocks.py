"""Walking the blocks of a model: the same answers in every layout, and under a surgery."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import pytest

from jax_interp.surgery import (
    AddressError,
    Zero,
    at,
    blocks_as_pytree,
    depth_of,
    edit,
    get_block,
    iter_blocks,
    iter_segments,
    map_blocks,
    replan,
)
from tests.surgery.conftest import DEPTH, LAYOUTS
from tests.surgery.foreign import PlainMLP, RecurrentNet


@pytest.fixture(scope="module")
def net():
    return RecurrentNet.of(DEPTH, 4, jax.random.key(0))


@pytest.fixture(params=LAYOUTS)
def laid_out(net, request):
    return replan(net, LAYOUTS[request.param])


def test_every_block_is_found_in_its_place(net, laid_out):
    wanted = net.blocks[0].unstack()
    for model in (laid_out, laid_out.blocks, edit(laid_out, at("embed", Zero()))):
        assert depth_of(model) == DEPTH
        layers, blocks = zip(*iter_blocks(model), strict=True)
        assert layers == tuple(range(DEPTH))
        chex.assert_trees_all_equal(list(blocks), wanted)
        chex.assert_trees_all_equal(get_block(model, 3), wanted[3])
        chex.assert_trees_all_equal(blocks_as_pytree(model), net.blocks[0].block)
        assert [layer for segment in iter_segments(model) for layer in segment.layers] == list(layers)
    chex.assert_trees_all_equal(blocks_as_pytree(laid_out, lambda block: block.w_in), net.blocks[0].block.w_in)
    with pytest.raises(AddressError, match=r"there is no block 6: this model has blocks.0 to blocks.5"):
        get_block(laid_out, DEPTH)


def test_blocks_are_mapped_one_layer_at_a_time(net, laid_out):
    def change(block, factor):
        assert block.w_in.ndim == 2
        assert factor.ndim == 0
        return type(block)(block.w_in * factor, block.w_state)

    factors = jnp.arange(1.0, DEPTH + 1)
    changed = map_blocks(laid_out, change, factors)
    assert jax.tree.structure(changed) == jax.tree.structure(laid_out)
    w_in = net.blocks[0].block.w_in
    chex.assert_trees_all_equal(blocks_as_pytree(changed).w_in, w_in * factors[:, None, None])
    chex.assert_trees_all_equal(blocks_as_pytree(laid_out).w_in, w_in)
    under = map_blocks(edit(laid_out, at("embed", Zero())), change, factors)
    chex.assert_trees_all_equal(under.model, changed)


def test_a_model_without_blocks_has_none():
    model = PlainMLP.of([3, 3], jax.random.key(0))
    assert depth_of(model) == 0
    assert list(iter_blocks(model)) == []
    with pytest.raises(AddressError, match="has no blocks"):
        get_block(model, 0)
