"""One code on no mesh, an automatic one and an explicit one; full sizes on meshes that nobody has."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import config_of
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from small_models import CONFIGS, GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.models import Config, Rope, RopeScaling, generate, init, pad_left
from jax_interp.models.sharding import rules
from jax_interp.surgery import Add, at, edit, read, replan
from jax_interp.training.sharding import BATCH, abstract, abstract_mesh, make_mesh, shard, shard_batch, specs

LLAMA_3_8B = Config(
    n_layers=32,
    d_model=4096,
    n_heads=32,
    n_kv_heads=8,
    d_mlp=14336,
    vocab_size=128256,
    n_ctx=8192,
    rope=Rope(500_000.0, scaling=RopeScaling("llama3", 8.0)),
    tied_embedding=False,
)
READS = ("blocks.*.resid_post", "blocks.1.attn.pattern", "blocks.0.attn.result", "blocks.2.mlp.post")


@pytest.mark.parametrize("explicit", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["explicit", "auto"])
@pytest.mark.parametrize("plan", ["stacked", pytest.param("unrolled", marks=pytest.mark.slow)])
def test_sharded_is_single_device(model, call, explicit, plan):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 61, (4, 9)), jnp.int32)
    model = replan(model, "*") if plan == "unrolled" else model
    surgery = lambda model, v: read(edit(model, at("blocks.1.resid_post", Add(v), pos=2)), *READS)
    vector = jnp.ones(model.config.d_model)
    logits, acts = call(surgery(model, vector), tokens)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    with jax.set_mesh(mesh):
        placed = shard(model, rules(model.config), mesh)
        there = shard_batch(tokens, mesh)
        sharded, sharded_acts = call(surgery(placed, vector), there)
        gradient = jax.jit(jax.grad(lambda model: jnp.mean(model(there) ** 2)))(placed)
        if explicit:
            assert jax.typeof(sharded_acts["blocks.*.resid_post"]).sharding.spec == P(None, *BATCH, None, None)
            assert jax.typeof(sharded_acts["blocks.1.attn.pattern"]).sharding.spec == P(*BATCH, "tensor", None, None)
            wanted = list(specs(model, rules(model.config)).values())
            assert [jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves(gradient)] == wanted
    np.testing.assert_allclose(jax.device_get(sharded), logits, atol=1e-5)
    for name in READS:
        np.testing.assert_allclose(jax.device_get(sharded_acts[name]), acts[name], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "auto"])
@pytest.mark.parametrize("case", ["GPT-J", "Mixtral", "Gemma 3", "OLMo 2"])
def test_what_is_particular_in_families_is_sharded_too(case, explicit, call):
    model = peaky(dataclasses.replace(config_of(case), vocab_size=128))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 128, (4, 9)), jnp.int32)
    loss = lambda model, tokens: jnp.mean(model(tokens) ** 2)
    logits, gradient = call(model, tokens), jax.jit(jax.grad(loss))(model, tokens)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    with jax.set_mesh(mesh):
        placed, there = shard(model, rules(model.config), mesh), shard_batch(tokens, mesh)
        sharded, sharded_gradient = call(placed, there), jax.jit(jax.grad(loss))(placed, there)
    np.testing.assert_allclose(jax.device_get(sharded), logits, atol=2e-5)
    for there, here in zip(jax.tree.leaves(sharded_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(jax.device_get(there), here, atol=1e-4 * float(jnp.max(jnp.abs(here))))


@pytest.mark.parametrize("explicit", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["explicit", "auto"])
@pytest.mark.parametrize(("heads", "kv_heads", "tensor"), [(4, 1, 2), (4, 2, 4), (6, 2, 4)])
def test_heads_that_the_tensor_axis_does_not_divide(explicit, heads, kv_heads, tensor, call):
    """Values, the pattern, gradients and generation with a cache are those of one device."""
    config = Config(n_layers=2, d_model=32, n_heads=heads, n_kv_heads=kv_heads, d_head=8, d_mlp=64, vocab_size=64,
                    n_ctx=32, norm="rmsnorm")  # fmt: skip
    model, tokens = peaky(config), jnp.asarray(np.random.default_rng(0).integers(0, 64, (4, 9)), jnp.int32)
    reads = ("blocks.*.attn.k", "blocks.1.attn.pattern", "blocks.*.resid_post")
    loss = jax.jit(jax.grad(lambda model, tokens: jnp.mean(model(tokens) ** 2)))
    logits, acts = call(read(model, *reads), tokens)
    gradient, text = loss(model, tokens), generate(model, tokens, 4)
    mesh = make_mesh(data=2, tensor=tensor, explicit=explicit)
    with jax.set_mesh(mesh):
        placed, there = shard(model, rules(config), mesh), shard_batch(tokens, mesh)
        sharded, sharded_acts = call(read(placed, *reads), there)
        sharded_gradient = loss(placed, there)
        np.testing.assert_array_equal(jax.device_get(generate(placed, there, 4)), text)
    np.testing.assert_allclose(jax.device_get(sharded), logits, atol=2e-5)
    for name in reads:
        np.testing.assert_allclose(jax.device_get(sharded_acts[name]), acts[name], atol=2e-5)
    for there, here in zip(jax.tree.leaves(sharded_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(jax.device_get(there), here, atol=1e-4 * float(jnp.max(jnp.abs(here))) + 1e-9)


@pytest.mark.parametrize("explicit", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["explicit", "auto"])
def test_sharded_generation_is_that_of_a_single_device(model, explicit):
    tokens, mask = pad_left([[5, 9, 33, 2], [41], [8, 8, 30], [1, 2]])
    alone = generate(model, tokens, 5, mask=mask)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    with jax.set_mesh(mesh):
        placed = shard(model, rules(model.config), mesh)
        out = generate(placed, shard_batch(tokens, mesh), 5, mask=shard_batch(mask, mesh))
    np.testing.assert_array_equal(jax.device_get(out), alone)


def test_eight_billion_parameters_on_256_chips():
    mesh = abstract_mesh(data=4, fsdp=8, tensor=8)
    model = jax.eval_shape(lambda: init(LLAMA_3_8B, jax.random.key(0), dtype=jnp.bfloat16))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == 8_030_261_248
    tokens = jax.ShapeDtypeStruct((64, 8192), jnp.int32, sharding=NamedSharding(mesh, P(*BATCH, None)))
    with jax.sharding.use_abstract_mesh(mesh):
        model = abstract(model, rules(LLAMA_3_8B), mesh)
        logits, acts = jax.eval_shape(lambda m, t: read(m, "blocks.*.resid_post", "blocks.5.attn.z")(t), model, tokens)
        _, cache = jax.eval_shape(lambda m, t: m(t, cache=8200), model, tokens)
    assert (logits.shape, logits.sharding.spec) == ((64, 8192, 128256), P(*BATCH, None, "tensor"))
    assert acts["blocks.*.resid_post"].shape == (32, 64, 8192, 4096)
    assert acts["blocks.5.attn.z"].sharding.spec == P(*BATCH, None, "tensor", None)
    assert cache.layers[0].k.shape == (32, 64, 8200, 8, 128)
    assert cache.layers[0].k.sharding.spec == P(None, *BATCH, None, "tensor", None)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_rule_decides_something_and_every_parameter_has_one(name):
    config = CONFIGS[name]
    for stacked in (True, False):
        model = jax.eval_shape(lambda: init(config, jax.random.key(0), stacked=stacked))  # noqa: B023
        assert len(specs(model, rules(config))) == len(jax.tree.leaves(model))


def test_init_is_the_same_under_jit_and_on_a_mesh():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for config in (GPT2_LIKE, LLAMA_LIKE):
        plain = init(config, jax.random.key(0))
        compiled = jax.jit(lambda key: init(config, key))(jax.random.key(0))  # noqa: B023
        placed = shard(compiled, rules(config), mesh)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, jax.device_get(b), atol=1e-8), plain, placed)
    assert peaky(LLAMA_LIKE).config == LLAMA_LIKE
