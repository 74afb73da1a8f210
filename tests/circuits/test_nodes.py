"""Units of named values: what is kept, what is patched, against single runs that replace one value."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from node_cases import BASES, LENGTH, PROMPTS, SOME_BASES, VOCAB, contrast_of, gpt, llama, transcoded

from jax_interp.circuits import LogitDifference, baseline, make_contrast
from jax_interp.circuits.nodes import Nodes, make_nodes, node_effects, node_metric, other_values, resampled, swapped
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.replacement import measure_errors
from jax_interp.surgery import AddressError, Replace, Zero, at, edit, read, values_at

metric_of = jax.jit(node_metric, static_argnames="other")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", params=SOME_BASES)
def case(request):
    make, addresses, per, padded = BASES[request.param]
    model, contrast = make(), contrast_of(padded)
    return model, contrast, make_nodes(model, contrast, addresses, per=per)


def test_all_kept_is_the_clean_run_and_each_unit_alone_is_a_run_with_one_value_replaced(case):
    """The three runs of one program: keep all (equal to the clean run), one unit patched by hand with `Replace` inside
    a mask of the unit, and all units patched."""
    model, contrast, nodes = case
    clean, _ = baseline(model, contrast)
    np.testing.assert_array_equal(metric_of(model, contrast, nodes, jnp.ones(nodes.size)), clean)
    unit = int(RNG.integers(nodes.size))
    others = other_values(model, contrast, nodes)

    @jax.jit
    def by_hand(patched):
        edits = []
        for value in nodes.values:
            for i, layer in enumerate(value.layers or (None,)):
                address = value.address if layer is None else f"blocks.{layer}.{value.address.split('.', 2)[2]}"
                taken, inside = others[value.address], value.expanded(nodes.split(patched)[value.address], False)
                taken, inside = (taken[i], inside[i]) if value.has_layer_axis else (taken, inside)
                edits.append(at(address, Replace(taken), where=jnp.broadcast_to(inside, taken.shape)))
        inputs = {} if contrast.mask is None else {"mask": contrast.mask}
        return contrast.metric(edit(model, *edits)(contrast.clean, **inputs))

    for patched in (jnp.arange(nodes.size) == unit, jnp.ones(nodes.size, bool)):
        found = metric_of(model, contrast, nodes, ~patched)
        np.testing.assert_allclose(found, by_hand(patched), rtol=1e-5, atol=1e-5)
    effects = node_effects(model, contrast, nodes, [unit])
    found = metric_of(model, contrast, nodes, jnp.arange(nodes.size) != unit)
    np.testing.assert_allclose(effects[:, 0], found - clean, atol=1e-5)


def test_none_kept_gives_every_value_its_corrupted_value():
    model, contrast = llama(), contrast_of()
    nodes = make_nodes(model, contrast, ["blocks.*.attn.z", "blocks.1.mlp.post"], per=("head", "pos"))
    others = other_values(model, contrast, nodes)
    ablated = edit(model, *nodes.edits(jnp.zeros(nodes.size), others))
    found = values_at(ablated, *nodes.addresses)(contrast.clean)
    for address in nodes.addresses:
        np.testing.assert_array_equal(found[address], others[address])
    embed = make_nodes(model, contrast, "embed")
    np.testing.assert_allclose(
        metric_of(model, contrast, embed, jnp.zeros(1)), baseline(model, contrast)[1], rtol=1e-6, atol=1e-6
    )


def test_sets_units_and_prompts_are_data():
    """vmap over sets, a set for each prompt, both directions, pieces of any size: one number for each."""
    model, contrast = gpt(), contrast_of(padded=True)
    nodes = make_nodes(model, contrast, "blocks.*.attn.z", per="head")
    keep = jnp.asarray(RNG.random((PROMPTS, nodes.size)), jnp.float32)
    sets = jax.jit(jax.vmap(node_metric, (None, None, None, 0)))(model, contrast, nodes, keep)
    np.testing.assert_allclose(metric_of(model, contrast, nodes, keep), jnp.diagonal(sets), rtol=1e-5, atol=1e-5)
    whole = node_effects(model, contrast, nodes, direction="denoise", rows=7)
    assert whole.shape == (PROMPTS, nodes.size)
    np.testing.assert_allclose(whole, node_effects(model, swapped(contrast), nodes, rows=1000), atol=2e-5)
    before = metric_of._cache_size()
    metric_of(model, contrast, nodes, 1.0 - keep)
    assert metric_of._cache_size() == before


def test_the_gradient_in_keep_equals_finite_differences():
    with jax.enable_x64(True):
        model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), gpt(1))
        contrast = contrast_of()
        nodes = make_nodes(model, contrast, "blocks.*.attn.z", per="head")
        keep = jnp.asarray(RNG.random(nodes.size))
        total = jax.jit(lambda keep: node_metric(model, contrast, nodes, keep).sum())
        grad, h = jax.grad(total)(keep), 1e-5
        for i, e in enumerate(jnp.eye(nodes.size)):
            by_hand = (total(keep + h * e) - total(keep - h * e)) / (2 * h)
            np.testing.assert_allclose(grad[i], by_hand, rtol=1e-6, atol=1e-8)


def test_zero_means_and_resampled_values():
    model, contrast = gpt(), contrast_of()
    nodes = make_nodes(model, contrast, "blocks.*.attn.z", per="head")
    unit = nodes.index("blocks.1.attn.z", head=2)
    keep = jnp.ones(nodes.size).at[unit].set(0.0)
    by_hand = contrast.metric(edit(model, at("blocks.1.attn.z", Zero(), head=2))(contrast.clean))
    np.testing.assert_allclose(metric_of(model, contrast, nodes, keep, other="zero"), by_hand, rtol=1e-5, atol=1e-5)
    mean = read(model, "blocks.*.attn.z", output=False)(contrast.clean)["blocks.*.attn.z"].mean((1, 2))
    found = node_metric(model, contrast, nodes, keep, other={"blocks.*.attn.hook_z": mean})
    by_hand = contrast.metric(edit(model, at("blocks.1.attn.z", Replace(mean[1]), head=2))(contrast.clean))
    np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-5)
    many = make_contrast(jnp.arange(40)[:, None] % VOCAB, jnp.zeros((40, 1), int), contrast.metric)
    drawn = resampled(many, jax.random.key(0))
    assert sorted(drawn.corrupted[:, 0].tolist()) == sorted(drawn.clean[:, 0].tolist())
    assert not bool((drawn.corrupted == drawn.clean).any())


def test_units_have_names_numbers_and_axes():
    model, contrast = llama(), contrast_of()
    nodes = make_nodes(model, contrast, "blocks.*.attn.k", per=("head", "pos")) + make_nodes(
        model, contrast, ["embed", "blocks.0.mlp.post"], per="feature"
    )
    assert nodes.size == 2 * 2 * LENGTH + 32 + 48
    unit = nodes.index("blocks.1.attn.k", head=1, pos=4)
    assert nodes.names()[unit] == "blocks.1.attn.k[pos 4, kv_head 1]"
    assert nodes.names()[nodes.index("blocks.0.mlp.post", feature=5)] == "blocks.0.mlp.post[d_mlp 5]"
    numbers = nodes.labelled(np.arange(nodes.size))
    assert int(numbers["blocks.*.attn.k"].sel(layer=1, pos=4, kv_head=1).values) == unit
    np.testing.assert_array_equal(nodes.join(nodes.split(jnp.arange(nodes.size))), np.arange(nodes.size))
    again = make_nodes(model, contrast, "blocks.*.attn.k", per=("pos", "head")) + Nodes(nodes.values[1:])
    assert hash(nodes) == hash(again)
    assert jax.tree.leaves(nodes) == []


REFUSED = {
    "an unknown axis": ({"addresses": "blocks.*.mlp_out", "per": "head"}, UserError, "no value has this axis"),
    "an unknown address": ({"addresses": "blocks.*.attn.zz"}, AddressError, "names no value"),
    "no layer": ({"addresses": "blocks.attn.z"}, AddressError, "does not say which layers"),
    "a value twice": ({"addresses": ["blocks.*.attn.z", "blocks.1.attn.z"]}, UserError, "named twice"),
    "no address": ({"addresses": []}, UserError, "no address"),
    "the prompts as an axis": ({"addresses": "blocks.*.attn.z", "per": "batch"}, UserError, "no value has this axis"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_cut(kind):
    asked, error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        make_nodes(gpt(), contrast_of(), **asked)


def test_what_cannot_be_run():
    model, contrast = gpt(), contrast_of()
    nodes = make_nodes(model, contrast, "blocks.*.attn.z", per="head")
    with pytest.raises(UserError, match="there are 8 units"):
        node_metric(model, contrast, nodes, jnp.ones(7))
    with pytest.raises(UserError, match="give numbers from 0 to 7"):
        node_effects(model, contrast, nodes, [8])
    with pytest.raises(UserError, match="choose corrupted or zero"):
        node_metric(model, contrast, nodes, jnp.ones(8), other="mean")
    with pytest.raises(UserError, match="no values for"):
        node_metric(model, contrast, nodes, jnp.ones(8), other={"embed": jnp.zeros(32)})
    with pytest.raises(UserError, match="choose denoise"):
        node_effects(model, contrast, nodes, direction="both")
    with pytest.raises(UserError, match="one prompt"):
        resampled(contrast.rows(slice(1)), jax.random.key(0))
    with pytest.raises(UserError, match="there is no unit"):
        nodes.index("blocks.3.attn.z", head=0)
    local = transcoded()
    errors = measure_errors(local.model, local.reads, local.writes, local.dictionary)(contrast.clean)
    exact = type(local)(local.model, local.dictionary, errors, None, local.reads, local.writes)
    latents = make_nodes(exact, contrast, "blocks.0.ln2.normalized.latents", per="feature")
    with pytest.raises(UserError, match="not those of the corrupted prompts"):
        node_metric(exact, contrast, latents, jnp.ones(latents.size))
    assert LogitDifference(3, 4).last_only
