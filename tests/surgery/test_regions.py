"""Regions of edits: numpy indexing, masks, errors for what is outside, NaN for data that is outside."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.surgery import RegionError, Scale, Zero, at, edit, read

call = jax.jit(lambda f, *args: f(*args))
trace = jax.eval_shape  # errors are raised while a model is traced: nothing needs to run
same_bits = chex.assert_trees_all_equal


REGIONS = [
    ({"pos": 3}, np.s_[:, 3]),
    ({"pos": -2}, np.s_[:, -2]),
    ({"pos": [0, 5]}, np.s_[:, [0, 5]]),
    ({"pos": slice(2, 7)}, np.s_[:, 2:7]),
    ({"pos": slice(-3, None)}, np.s_[:, -3:]),
    ({"pos": np.arange(12) % 2 == 0}, np.s_[:, ::2]),
    ({"head": 1}, np.s_[:, :, 1]),
    ({"head": [0, -1]}, np.s_[:, :, [0, 3]]),
    ({"feature": slice(4, 8)}, np.s_[..., 4:8]),
    ({"head": 2, "pos": 3}, np.s_[:, 3, 2]),
    ({"head": 1, "pos": slice(1, 4), "feature": 0}, np.s_[:, 1:4, 1, 0]),
]


@pytest.mark.parametrize(("region", "where"), REGIONS, ids=[str(list(r)) + str(i) for i, (r, _) in enumerate(REGIONS)])
def test_a_region_is_numpy_indexing_and_the_rest_keeps_its_bits(model, tokens, region, where):
    z = "blocks.1.attn.z"
    clean = np.array(call(read(model, z), tokens)[1][z])
    clean[where] *= 3.0
    same_bits(call(read(edit(model, at(z, Scale(3.0), **region)), z), tokens)[1][z], clean)


def test_where_is_a_mask_over_the_value_or_over_batch_and_pos(model, tokens):
    z = "blocks.1.attn.z"
    clean = np.array(call(read(model, z), tokens)[1][z])
    rows = jax.random.bernoulli(jax.random.key(3), 0.5, tokens.shape)
    whole = jax.random.bernoulli(jax.random.key(4), 0.5, clean.shape)
    for mask, expected in ((rows, np.where(rows[..., None, None], 0, clean)), (whole, np.where(whole, 0, clean))):
        same_bits(call(read(edit(model, at(z, Zero(), where=mask)), z), tokens)[1][z], expected)
    with pytest.raises(RegionError, match=r"where= of the value at .* has shape \(2, 12\)"):
        trace(edit(model, at(z, Zero(), where=rows[:2])), tokens)
    with pytest.raises(RegionError, match="boolean mask"):
        trace(edit(model, at(z, Zero(), where=rows.astype(int))), tokens)


@pytest.mark.parametrize(
    ("region", "says"),
    [
        ({"pos": 12}, r"12 is outside: pos= .* takes -12 to 11"),
        ({"pos": [3, -13]}, r"-13 is outside"),
        ({"head": 4}, r"4 is outside: head= of the value at 'blocks.1.attn.z' takes -4 to 3"),
        ({"feature": 16}, r"16 is outside"),
        ({"head": np.ones(3, bool)}, r"has shape \(3,\), the axis has 4"),
        ({"pos": slice(50, 60)}, r"50:60 is outside: pos= .* takes -12 to 11"),
        ({"pos": slice(12, 13)}, r"12:13 is outside"),
        ({"pos": slice(5, 2)}, r"5:2 is outside"),
        ({"pos": slice(13, None)}, r"13: is outside"),
        ({"pos": slice(-30, -20)}, r"-30:-20 is outside"),
        ({"head": slice(20, 30)}, r"20:30 is outside: head="),
    ],
)
def test_a_region_outside_the_value_is_an_error(model, tokens, region, says):
    with pytest.raises(RegionError, match=says):
        trace(edit(model, at("blocks.1.attn.z", Zero(), **region)), tokens)


@pytest.mark.parametrize("span", [slice(0, 0), slice(12, None), slice(None, -12), slice(12, 12)])
def test_the_empty_part_of_a_split_axis_changes_nothing(model, tokens, span):
    same_bits(call(edit(model, at("blocks.1.mlp_out", Zero(), pos=span)), tokens), call(model, tokens))


def test_a_mask_over_layers_has_one_entry_for_each(model, tokens):
    for mask in (True, np.ones(7, bool)):
        with pytest.raises(RegionError, match="the mask layer= has shape"):
            edit(model, at("blocks.resid_post", Zero(), layer=mask))(tokens)


def test_a_layer_outside_the_model_is_an_error(model, tokens):
    with pytest.raises(RegionError, match=r"layer=slice\(0, 2, None\): give an index, a list .* in the address"):
        at("blocks.resid_post", Zero(), layer=slice(0, 2))
    with pytest.raises(RegionError, match=r"6 is outside: layer= of 'blocks.resid_post' takes -6 to 5"):
        trace(edit(model, at("blocks.resid_post", Zero(), layer=6)), tokens)


def test_an_axis_that_the_value_lacks_is_an_error(model, tokens):
    with pytest.raises(RegionError, match=r"axes \(batch pos d_model\): there is no 'head'"):
        trace(edit(model, at("blocks.1.mlp_out", Zero(), head=1)), tokens)


@pytest.mark.parametrize("edit_at", [
    lambda i: at("blocks.1.attn.z", Zero(), head=i), lambda i: at("blocks.resid_post", Zero(), layer=i),
    lambda i: at("blocks.1.mlp_out", Zero(), pos=i), lambda i: at("blocks.1.mlp_out", Zero(), pos=slice(i, i + 2)),
])  # fmt: skip
def test_an_index_outside_that_is_traced_data_makes_nan(model, tokens, edit_at):
    sweep = jax.jit(lambda i: edit(model, edit_at(i))(tokens))
    assert jnp.isfinite(sweep(jnp.int32(1))).all()
    assert jnp.isnan(sweep(jnp.int32(100))).all(axis=-1).any()


def test_key_and_value_heads_are_heads(model, tokens):
    v = "blocks.1.attn.v"
    clean = np.array(call(read(model, v), tokens)[1][v])
    clean[:, :, 1] = 0
    same_bits(call(read(edit(model, at(v, Zero(), head=1)), v), tokens)[1][v], clean)
    with pytest.raises(RegionError, match="takes -2 to 1"):
        trace(edit(model, at(v, Zero(), head=2)), tokens)
