"""Model surgery: parts are found by class or by path, in every layout, and replaced."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jax_interp.analysis import b_O, b_V
from jax_interp.core.errors import UserError
from jax_interp.core.linear import Linear
from jax_interp.core.norms import FrozenNorm, LayerNorm, RMSNorm
from jax_interp.models import generate, init
from jax_interp.models.mlp import MLP
from jax_interp.surgery import Zero, at, depth_of, edit, read, replan
from jax_interp.surgery.lora import LoRA, LowRank
from jax_interp.surgery.select import SelectionError, arrange, join, replace, replace_each, select, skip_block, split
from tests.surgery.conftest import CONFIG

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


def with_lora(model, seed=0):
    keys = jax.random.split(jax.random.key(seed), depth_of(model.blocks))
    for name in ("q", "o"):
        model = replace_each(model, f"blocks.*.attn.{name}", lambda linear, key: LoRA(linear, key, rank=2), keys)
    return model


def test_lora_is_neutral_as_it_is_made_and_the_same_in_every_layout(model, base, tokens):
    adapted = with_lora(model)
    chex.assert_trees_all_equal(call(adapted, tokens), call(model, tokens))
    name = "blocks.*.attn.q.low_rank"
    _, acts = call(read(adapted, name), tokens)
    chex.assert_shape(acts[name], (depth_of(base.blocks), *tokens.shape, 2))
    chex.assert_trees_all_close(acts[name], call(read(with_lora(base), name), tokens)[1][name], rtol=1e-5, atol=1e-5)
    count = select(adapted).at_instances_of(LoRA).count()
    assert count == 2 * len(model.blocks), "one part stands for all layers of a stack"


def test_an_adapted_model_generates_and_its_heads_add_up_to_its_output(base, tokens):
    """Keys tell a cache's shape, and a head's part of the output is by the whole matrix."""
    adapted = base
    for name in ("k", "o"):
        keys = jax.random.split(jax.random.key(1), depth_of(base.blocks))
        adapted = replace_each(adapted, f"blocks.*.attn.{name}", lambda linear, key: LoRA(linear, key, rank=2), keys)
    chosen, rest = split(adapted, LowRank)
    adapted = join(jax.tree.map(lambda p: p + 0.1, chosen), rest)
    merged = replace(adapted, LoRA, lambda lora: lora.merged())
    chex.assert_trees_all_equal(generate(adapted, tokens, 3), generate(merged, tokens, 3))
    name = "blocks.*.attn.result"
    results = [call(read(model, name), tokens)[1][name] for model in (adapted, merged)]
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)


def test_what_is_split_off_is_differentiated_alone_and_joined_again(base, tokens):
    chosen, rest = split(with_lora(base), LowRank)
    assert sum(leaf.size for leaf in jax.tree.leaves(chosen)) == 6 * 2 * 2 * (64 + 64)
    grads = jax.jit(jax.grad(lambda chosen: jnp.sum(join(chosen, rest)(tokens)[..., 3])))(chosen)
    q = grads.blocks[0].block.attn.q.low_rank
    assert jnp.any(q.b[...])
    assert not jnp.any(q.a[...]), "its other factor is zero"
    trained = join(jax.tree.map(lambda p, g: p + 0.1 * g, chosen, grads), rest)
    merged = replace(trained, LoRA, lambda lora: lora.merged())
    chex.assert_trees_all_close(call(merged, tokens), call(trained, tokens), rtol=1e-4, atol=1e-4)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    with pytest.raises(SelectionError, match="no part of class LowRank"):
        split(base, LowRank)


def test_each_layer_gets_values_of_its_own(model, base, tokens):
    factors = jnp.arange(1.0, 1 + depth_of(base.blocks))

    def scaled(mlp, factor):
        return jax.tree.map(lambda leaf: leaf * factor, mlp)

    got = replace_each(model, "blocks.*.mlp", scaled, factors)
    for layer in (0, 4):
        want = base.blocks[0].block.mlp.up.weight[layer] * factors[layer]
        part = replan(got, "*").blocks[layer].mlp.up.weight[...]
        chex.assert_trees_all_equal(part, want)
    with pytest.raises(SelectionError, match="leading axis over the model's 6 layers"):
        replace_each(model, "blocks.*.mlp", scaled, factors[:3])
    with pytest.raises(SelectionError, match="a part of every block"):
        replace_each(model, "blocks.2.mlp", scaled, factors)


def test_blocks_swapped_and_run_twice(model, base, tokens):
    order = [0, 1, 3, 2, -1, 1]
    arranged = arrange(model, order)
    assert arranged.config.n_layers == 6
    apart = replan(base, "*").blocks
    rebuilt = replan(base, "*")
    rebuilt.blocks = nnx.List([apart[i] for i in order])
    chex.assert_trees_all_close(call(arranged, tokens), call(rebuilt, tokens), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(arrange(base, range(6)), base)
    with pytest.raises(SelectionError, match="no block 6"):
        arrange(base, [6])
    with pytest.raises(SelectionError, match="at least one layer, got an empty list"):
        arrange(base, [])


def test_the_kind_of_a_layers_attention_goes_along_with_it(base, tokens):
    config = dataclasses.replace(base.config, window=3, sliding=(True, False, True, False, True, False))
    alternating = replan(base)
    alternating.config = config
    shorter = skip_block(alternating, 1)
    assert shorter.config.sliding == (True, True, False, True, False)
    both = edit(alternating, at("blocks.1.attn_out", Zero()), at("blocks.1.mlp_out", Zero()))
    chex.assert_trees_all_close(call(shorter, tokens), call(both, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "norm",
    [
        LayerNorm(8, eps=1e-5, affine=True, dtype=jnp.float32),
        LayerNorm(8, eps=1e-5, affine=False, dtype=jnp.float32),
        RMSNorm(8, eps=1e-5, affine=True, offset=False, dtype=jnp.float32),
        RMSNorm(8, eps=1e-5, affine=True, offset=True, dtype=jnp.float32),
    ],
    ids=["LayerNorm", "LayerNorm without weights", "RMSNorm", "RMSNorm less one"],
)
def test_a_frozen_norm_at_an_inputs_own_denominator_is_the_norm_there_and_affine(norm):
    x, y, noise = jax.random.normal(jax.random.key(3), (3, 1, 1, 8))
    norm = jax.tree.map(lambda leaf: leaf + noise[0, 0], norm)
    seen = {}

    def site(name, value, axes):
        seen[name] = value
        return value

    want = norm(x, site)
    frozen = FrozenNorm(norm, seen["scale"][0, 0, 0])
    f = lambda x: frozen(x, site)
    chex.assert_trees_all_close(f(x), want, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(f(x + y) + f(0 * x), f(x) + f(y), rtol=1e-4, atol=1e-4)
    assert seen["normalized"].shape == x.shape
    assert not jnp.any(jax.grad(lambda frozen: jnp.sum(frozen(x, site)))(frozen).scale)


def test_a_class_or_path_that_selects_nothing_says_what_there_is(base):
    with pytest.raises(SelectionError, match="no part of class Conv"):
        replace(base, nnx.Conv, silent)
    with pytest.raises(SelectionError, match="Did you mean mlp"):
        replace(base, "blocks.*.mpl", silent)
    with pytest.raises(SelectionError, match="Did you mean embed"):
        replace(base, "embd", silent)
    with pytest.raises(SelectionError, match="selects nothing"):
        replace(base, "blocks", silent)
    for path, says in (
        ("blocks.9.mlp", "blocks.0 to blocks.5"),
        ("blocks.-7.mlp", "blocks.0 to blocks.5"),
        ("blocks.mlp", "names one layer"),
        ("blocks.1:3.mlp", "names one layer"),
    ):
        with pytest.raises(SelectionError, match=says):
            replace(replan(base, "*"), path, silent)


def test_skipping_a_block_is_leaving_it_out(base, tokens):
    shorter = skip_block(base, 2)
    assert depth_of(shorter.blocks) == depth_of(base.blocks) - 1
    both = edit(base, at("blocks.2.attn_out", Zero()), at("blocks.2.mlp_out", Zero()))
    chex.assert_trees_all_close(call(shorter, tokens), call(both, tokens), rtol=1e-6, atol=1e-6)
    with pytest.raises(SelectionError, match="no block 9"):
        skip_block(base, 9)


def test_every_linear_is_found(base):
    assert select(base).at_instances_of(Linear).count() == 7


def test_a_lora_on_a_lora_over_a_bias(base, tokens):
    """Each names its own value, both are trained, and merging gives the part that was adapted."""
    biased = dataclasses.replace(CONFIG, qkv_bias=True, out_bias=True)
    model = jax.tree.map(lambda w: w + 0.1, init(biased, jax.random.key(0)))
    twice = with_lora(with_lora(model), seed=1)
    trained, rest = split(twice, LowRank)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 2 * 6 * 2 * 2 * (64 + 64)
    twice = join(jax.tree.map(lambda p: p + 0.05, trained), rest)
    names = ("blocks.*.attn.q.low_rank", "blocks.*.attn.q.adapted.low_rank", "blocks.*.attn.result")
    logits, acts = call(read(twice, names), tokens)
    chex.assert_trees_all_equal(logits, call(twice, tokens))
    assert jnp.any(acts[names[0]] != acts[names[1]])
    merged = replace(twice, LoRA, lambda lora: lora.merged())
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    chex.assert_trees_all_close(call(merged, tokens), logits, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(call(read(merged, names[2]), tokens)[1][names[2]], acts[names[2]], rtol=1e-3, atol=1e-4)
    for analysis in (b_O, b_V):
        chex.assert_trees_all_equal(analysis(twice), analysis(model))


def test_a_lora_of_something_else_than_a_linear_map_is_refused(base):
    key = jax.random.key(0)
    for path, says in (
        ("embed", "got Embedding"),
        ("ln_final", "got RMSNorm"),
        ("blocks.*.attn.q", r"got Linear with \[6, 64, 64\]. For the parts of a stack use replace_each"),
        ("blocks.*.mlp", "got MLP"),
    ):
        with pytest.raises(UserError, match=says):
            replace(base, path, lambda part: LoRA(part, key))


def test_equal_parts_are_found_among_parameters(model):
    """`==` compares the elements of a parameter, so penzai's own comparison fails on every Flax model."""
    assert select(model).at_equal_to(3).count() == 0
    tree = {"model": model, "names": ("a", "b", "a")}
    assert select(tree).at_equal_to("a").count() == 2
    assert select(tree).at(lambda tree: tree["names"]).at_equal_to("a").count() == 2
    with pytest.raises(SelectionError, match="compares no arrays"):
        select(model).at_equal_to(jnp.ones(3))
