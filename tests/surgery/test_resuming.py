"""A resumed model gives what the whole model gives, and runs only the blocks from its layer on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign import PlainMLP, RecurrentNet

from jax_interp.core.errors import UserError
from jax_interp.models import Config, init
from jax_interp.surgery import (
    Add,
    AddressError,
    Each,
    RegionError,
    Replace,
    Zero,
    at,
    block_inputs,
    call,
    edit,
    read,
    replan,
    resumed,
)  # fmt: skip

CONFIG = Config(n_layers=4, d_model=16, n_heads=4, n_kv_heads=2, d_mlp=24, vocab_size=30, n_ctx=16)
MODEL = init(CONFIG, jax.random.key(0))
TOKENS, OTHER = (jax.random.randint(jax.random.key(i), (2, 5), 0, 30) for i in (1, 2))
DONOR = call(read(MODEL, "blocks.*.attn.z", output=False), OTHER)["blocks.*.attn.z"]
patch = lambda layer, pos: at("blocks.attn.z", Each(Replace(DONOR)), layer=layer, pos=pos)


@pytest.mark.parametrize("layout", [(), "*", "1:3"], ids=["scanned", "unrolled", "mixed"])
def test_an_edit_in_a_resumed_model_is_an_edit_in_the_model(layout):
    model = edit(replan(MODEL, layout), at("blocks.1.mlp_out", Zero()))  # an edit of the user's, below some layers
    logits, streams = block_inputs(model)(TOKENS)
    np.testing.assert_array_equal(logits, model(TOKENS))
    np.testing.assert_array_equal(
        streams, read(model, "blocks.*.resid_pre", output=False)(TOKENS)["blocks.*.resid_pre"]
    )
    from_layer = jax.jit(lambda layer, pos: edit(resumed(model, layer, streams[layer]), patch(layer, pos))(TOKENS))
    whole = jax.jit(lambda layer, pos: edit(model, patch(layer, pos))(TOKENS))
    for layer, pos in ((0, 2), (2, 0), (3, 4)):
        np.testing.assert_allclose(from_layer(layer, pos), whole(layer, pos), atol=1e-6)
    np.testing.assert_allclose(resumed(model, 2, streams[2])(TOKENS), logits, atol=1e-6)


def test_blocks_before_the_layer_are_not_run():
    poison = edit(MODEL, at("blocks.1.resid_post", Add(jnp.full(16, jnp.nan))))
    stream = block_inputs(MODEL)(TOKENS)[1][2]
    run = jax.jit(lambda layer: resumed(poison, layer, stream)(TOKENS))
    assert np.isfinite(run(2)).all()
    assert np.isnan(run(1)).all()
    assert "while" in str(jax.make_jaxpr(run)(2))


def test_a_block_is_resumed_in_models_that_are_not_ours():
    model = RecurrentNet.of(3, 4, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 6, 4))
    out, streams = block_inputs(model)(x)
    np.testing.assert_allclose(resumed(model, 1, streams[1])(x), out, atol=1e-6)


def test_a_cache_is_read_and_the_rest_of_the_text_is_run():
    (_, cache), streams = block_inputs(MODEL)(TOKENS, cache=5)
    begun = dataclasses.replace(cache, length=jnp.int32(3), valid=cache.valid & (jnp.arange(5) < 3)[None])
    model = edit(resumed(MODEL, 1, streams[1][:, 3:]), patch(1, 4))
    found, _ = call(model, TOKENS[:, 3:], cache=begun)
    np.testing.assert_allclose(found, edit(MODEL, patch(1, 4))(TOKENS)[:, 3:], atol=1e-6)


@pytest.mark.parametrize("layout", [(), "*", "1:3"], ids=["scanned", "unrolled", "mixed"])
def test_at_a_fixed_layer_values_are_read_and_gradients_flow_backwards(layout):
    """Output, readings and the gradient of a vector that is added are those of the whole model, from every layer."""
    model = edit(replan(MODEL, layout), at("blocks.1.mlp_out", Zero()))
    logits, streams = block_inputs(model)(TOKENS)
    steer = lambda model, vector: edit(model, at("blocks.2.mlp_out", Add(vector)))

    def value(model, vector):
        x = read(steer(model, vector), "blocks.2:4.resid_post", output=False)(TOKENS)["blocks.2:4.resid_post"]
        return jnp.sum(jnp.sin(x)), x

    vector = jnp.linspace(-1.0, 1.0, 16)
    both = jax.jit(jax.value_and_grad(value, argnums=1, has_aux=True))
    want = both(model, vector)
    for layer in range(3):
        begun = resumed(model, layer, streams[layer], fixed=True)
        np.testing.assert_allclose(jax.jit(begun)(TOKENS), logits, atol=1e-6)
        jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, atol=2e-6), both(begun, vector), want)
    assert np.abs(want[1]).max() > 0.1
    np.testing.assert_allclose(resumed(model, -1, streams[3], fixed=True)(TOKENS), logits, atol=1e-6)
    final = read(resumed(model, 3, streams[3], fixed=True), "ln_final.normalized", output=False)(TOKENS)
    want = read(model, "ln_final.normalized", output=False)(TOKENS)
    np.testing.assert_allclose(final["ln_final.normalized"], want["ln_final.normalized"], atol=1e-6)


def test_what_a_model_resumed_at_a_fixed_layer_refuses():
    stream = block_inputs(MODEL)(TOKENS)[1][2]
    poison = edit(MODEL, at("blocks.1.resid_post", Add(jnp.full(16, jnp.nan))))
    assert np.isfinite(resumed(poison, 2, stream, fixed=True)(TOKENS)).all()
    assert np.isnan(resumed(poison, 1, stream, fixed=True)(TOKENS)).all()
    begun = resumed(MODEL, 2, stream, fixed=True)
    with pytest.raises(RegionError, match="takes -4 to 4"):
        resumed(MODEL, 5, stream, fixed=True)
    with pytest.raises(RegionError, match="a plain integer"):
        jax.jit(lambda layer: resumed(MODEL, layer, stream, fixed=True)(TOKENS))(2)
    with pytest.raises(RegionError, match="acts before layer 2"):
        edit(begun, at("blocks.1.mlp_out", Zero()))(TOKENS)
    assert np.isnan(jax.jit(lambda layer: edit(begun, patch(layer, 0))(TOKENS))(1)).all()
    with pytest.raises(AddressError, match="exists in blocks 2, 3 and not in 0"):
        read(begun, "blocks.*.resid_post")(TOKENS)
    with pytest.raises(UserError, match="takes no cache"):
        begun(TOKENS, cache=8)


def test_what_a_resumed_model_refuses():
    stream = block_inputs(MODEL)(TOKENS)[1][2]
    with pytest.raises(RegionError, match="layer of `resumed` takes -4 to 4"):
        call(resumed(MODEL, 5, stream), TOKENS)
    assert np.isnan(jax.jit(lambda layer: resumed(MODEL, layer, stream)(TOKENS))(5)).all()
    with pytest.raises(RegionError, match="acts before layer 2"):
        edit(resumed(MODEL, 2, stream), at("blocks.1.mlp_out", Zero()))(TOKENS)
    assert np.isnan(jax.jit(lambda layer: edit(resumed(MODEL, 2, stream), patch(layer, 0))(TOKENS))(1)).all()
    with pytest.raises(AddressError, match="no value of the blocks can be read"):
        read(resumed(MODEL, 2, stream), "blocks.3.resid_post")(TOKENS)
    with pytest.raises(UserError, match="resumed twice"):
        resumed(resumed(MODEL, 2, stream), 3, stream)(TOKENS)
    with pytest.raises(UserError, match="resumed with"):
        resumed(MODEL, 2, stream[:, :3])(TOKENS)
    mlp = PlainMLP.of((3, 4, 2), jax.random.key(0))
    with pytest.raises(UserError, match="does not run its blocks by"):
        block_inputs(mlp)(jnp.ones((1, 3)))
