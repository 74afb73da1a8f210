"""The separate inputs of heads and MLPs: `q_input`, `k_input`, `v_input`, `attn_in`, `mlp_in`, in every family.

The reference of an edited copy needs no copies: the whole stream that attention reads is edited (`attn_in`), and the
queries of one head are taken from this run.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp import Add, Replace, Scale, at, edit, grad_at, read, replan
from jax_interp.models import init
from jax_interp.models.sharding import rules
from jax_interp.surgery import survey
from jax_interp.surgery.lora import LoRA
from jax_interp.surgery.select import replace
from jax_interp.training.sharding import make_mesh, shard, shard_batch

call = jax.jit(lambda f, *args, **kwargs: f(*args, **kwargs))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 60, (2, 7)), jnp.int32)
EVERY = [f"blocks.*.{name}" for name in ("q_input", "k_input", "v_input", "attn_in", "mlp_in")]
FAMILIES = {
    **CONFIGS,
    "post-norm": dataclasses.replace(LLAMA_LIKE, norm_places="after", qk_norm="all heads"),
    "around, qk norm": dataclasses.replace(LLAMA_LIKE, norm_places="around", qk_norm="head"),
    "parallel": dataclasses.replace(GPT2_LIKE, parallel="two norms", positions="rotary"),
    "one norm": dataclasses.replace(GPT2_LIKE, parallel="one norm", positions="rotary"),
    "no norm": dataclasses.replace(GPT2_LIKE, norm="none"),
}
families = pytest.mark.parametrize("family", FAMILIES)
some_families = pytest.mark.parametrize("family", [pytest.param("around, qk norm", marks=pytest.mark.slow), "one norm"])


def vector(seed: int, *shape: int, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@families
def test_reading_the_inputs_and_editing_them_by_nothing_changes_no_bit(family):
    model = peaky(FAMILIES[family])
    logits, acts = call(read(model, *EVERY, "blocks.*.resid_pre"), TOKENS)
    plain = call(model, TOKENS)
    np.testing.assert_array_equal(logits, plain)
    stream = acts["blocks.*.resid_pre"]
    np.testing.assert_array_equal(acts["blocks.*.attn_in"], stream)
    for name, heads in (("q", model.config.n_heads), ("k", model.config.n_kv_heads), ("v", model.config.n_kv_heads)):
        every = np.broadcast_to(stream[:, :, :, None], (*stream.shape[:3], heads, stream.shape[-1]))
        np.testing.assert_array_equal(acts[f"blocks.*.{name}_input"], every)
    np.testing.assert_array_equal(call(edit(model, *(at(a, Scale(1.0)) for a in EVERY)), TOKENS), plain)


@families
def test_a_head_reads_its_own_copy_and_no_other_head_does(family):
    """In float64, so that equality is not a matter of rounding."""
    with jax.enable_x64(True):
        model = peaky(FAMILIES[family], dtype=jnp.float64)
        shift = vector(1, model.config.d_model, dtype=jnp.float64)
        names = [f"blocks.1.attn.{part}" for part in "qkv"]
        moved = edit(model, *(at(f"blocks.1.{part}_input", Add(shift), head=1) for part in "qkv"))
        all_moved = edit(model, at("blocks.1.attn_in", Add(shift)))
        run = jax.jit(lambda *models: [read(m, names)(TOKENS) for m in models])
        (_, plain), (_, everywhere), (logits, got) = run(model, all_moved, moved)
        expected = {name: plain[name].at[:, :, 1].set(everywhere[name][:, :, 1]) for name in names}
        for name in names:
            assert jnp.max(jnp.abs(expected[name] - plain[name])) > 0.1
            np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-12)
            np.testing.assert_array_equal(got[name][:, :, 0], plain[name][:, :, 0])
        by_value = edit(model, *(at(name, Replace(value)) for name, value in expected.items()))
        np.testing.assert_allclose(logits, call(by_value, TOKENS), rtol=0, atol=1e-11)


@some_families
def test_editing_all_copies_is_editing_what_attention_and_the_mlp_read(family):
    with jax.enable_x64(True):
        model = peaky(FAMILIES[family], dtype=jnp.float64)
        shift = vector(2, model.config.d_model, dtype=jnp.float64)
        copies = edit(model, *(at(f"blocks.*.{part}_input", Add(shift)) for part in "qkv"))
        np.testing.assert_allclose(
            call(copies, TOKENS), call(edit(model, at("blocks.*.attn_in", Add(shift))), TOKENS), rtol=0, atol=1e-11
        )
        # The stream itself is unchanged: shifting it too, and taking the shift away again before attention, is nothing.
        parallel = model.config.parallel != "no"
        both = edit(
            model,
            at("blocks.0.attn_in", Add(shift)),
            *([at("blocks.0.mlp_in", Add(shift)), at("blocks.0.resid_post", Add(shift))] if parallel else []),
        )
        if parallel:
            whole = edit(model, at("blocks.0.resid_pre", Add(shift)))
            np.testing.assert_allclose(call(both, TOKENS), call(whole, TOKENS), rtol=0, atol=1e-11)
        else:
            mlp = edit(model, at("blocks.0.mlp_in", Add(shift)), at("blocks.0.resid_post", Add(shift)))
            whole = edit(model, at("blocks.0.resid_mid", Add(shift)))
            np.testing.assert_allclose(call(mlp, TOKENS), call(whole, TOKENS), rtol=0, atol=1e-11)


@some_families
def test_the_gradients_at_the_copies_sum_to_the_gradient_at_what_attention_reads(family):
    with jax.enable_x64(True):
        model = peaky(FAMILIES[family], dtype=jnp.float64)
        metric = lambda logits: jnp.sum(jnp.sin(logits[:, -1]))
        names = [*EVERY, "blocks.*.ln1.scale"]
        _, copies = jax.jit(lambda m: grad_at(m, names[:3], *names[5:])(metric)(TOKENS))(model)
        _, stream = jax.jit(lambda m: grad_at(m, names[3:])(metric)(TOKENS))(model)
        parts = [copies[f"blocks.*.{part}_input"].sum(axis=3) for part in "qkv"]
        np.testing.assert_allclose(sum(parts), stream["blocks.*.attn_in"], rtol=0, atol=1e-11)
        # An edit of the scale acts on every copy.
        np.testing.assert_allclose(copies[names[5]], stream[names[5]], rtol=0, atol=1e-11)


@pytest.mark.parametrize("frozen", ["ln1.scale", "ln1.normalized"])
def test_an_edit_at_the_norm_acts_on_each_copy(frozen):
    with jax.enable_x64(True):
        model = peaky(GPT2_LIKE, dtype=jnp.float64)
        values = call(read(model, f"blocks.1.{frozen}"), TOKENS)[1][f"blocks.1.{frozen}"] * 1.5
        model = edit(model, at(f"blocks.1.{frozen}", Replace(values)))
        shift = vector(3, model.model.config.d_model, dtype=jnp.float64)
        one = edit(model, *(at(f"blocks.1.{part}_input", Add(shift)) for part in "qkv"))
        all_ = edit(model, at("blocks.1.attn_in", Add(shift)))
        np.testing.assert_allclose(call(one, TOKENS), call(all_, TOKENS), rtol=0, atol=1e-11)


def test_a_module_in_the_place_of_a_projection_sees_each_copy():
    with jax.enable_x64(True):
        model = replan(peaky(LLAMA_LIKE, dtype=jnp.float64), "*")
        for i, part in enumerate("qkv"):
            lora = lambda linear, i=i: LoRA(linear, rank=2, alpha=1.0, key=jax.random.key(i))
            model = replace(model, f"blocks.1.attn.{part}", lora)
        model = jax.tree.map(lambda w: w + 0.05, model)
        shift = vector(4, LLAMA_LIKE.d_model, dtype=jnp.float64)
        names = [f"blocks.1.attn.{part}" for part in "qkv"]
        moved = edit(model, *(at(f"blocks.1.{part}_input", Add(shift), head=1) for part in "qkv"))
        all_moved = edit(model, at("blocks.1.attn_in", Add(shift)))
        run = jax.jit(lambda *models: [read(m, names, output=False)(TOKENS) for m in models])
        plain, everywhere, got = run(model, all_moved, moved)
        for name in names:
            expected = plain[name].at[:, :, 1].set(everywhere[name][:, :, 1])
            np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "near"), [(jnp.float32, 2e-4), pytest.param(jnp.bfloat16, 0.1, marks=pytest.mark.slow)]
)
def test_padding_a_cache_and_half_precision_give_the_edit_of_each_text_alone(dtype, near):
    def edits(kind):
        q, k, v = (vector(i, LLAMA_LIKE.d_model).astype(kind) for i in range(3))
        return [
            at("blocks.1.q_input", Add(q), head=1, pos=3),
            at("blocks.*.k_input", Add(k), head=0),
            at("blocks.2.v_input", Add(v), head=1, pos=[0, 2]),
        ]

    with jax.enable_x64(True):
        exact = np.asarray(call(edit(peaky(LLAMA_LIKE, dtype=jnp.float64), edits(jnp.float64)), TOKENS))
    model = edit(peaky(LLAMA_LIKE, dtype=dtype), edits(dtype))
    left = jnp.concatenate([jnp.full((2, 2), -1, jnp.int32), TOKENS], axis=1)

    @jax.jit
    def at_once_and_by_cache(model, mask):
        first, cache = model(left[:, :5], mask=mask[:, :5], cache=9)
        rest, _ = model(left[:, 5:], mask=mask[:, 5:], cache=cache)
        return model(left, mask=mask), jnp.concatenate([first, rest], axis=1)

    for logits in at_once_and_by_cache(model, left >= 0):
        error = np.asarray(logits[:, 2:].astype(jnp.float32)) - exact
        assert np.sqrt(np.mean(error**2) / np.mean(exact**2)) < near


def test_inputs_that_nobody_asks_for_leave_no_operation():
    model = jax.eval_shape(lambda: init(GPT2_LIKE, jax.random.key(0)))
    shapes = lambda m: str(jax.jit(lambda m, t: m(t)).lower(m, TOKENS).as_text())
    copy = f"{TOKENS.shape[0]}x{TOKENS.shape[1]}x{GPT2_LIKE.n_heads}x{GPT2_LIKE.d_model}x"
    assert copy not in shapes(model)
    assert copy in shapes(read(model, "blocks.1.q_input"))
    named = survey(model)(TOKENS)
    assert named["blocks.0.q_input"].axes == ("batch", "pos", "head", "d_model")
    assert named["blocks.0.k_input"].axes == ("batch", "pos", "kv_head", "d_model")


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real")
@pytest.mark.parametrize("n_kv_heads", [pytest.param(4, marks=pytest.mark.slow), 1])
def test_copies_on_a_mesh_with_explicit_axes_equal_one_device(n_kv_heads):
    config = dataclasses.replace(LLAMA_LIKE, n_kv_heads=n_kv_heads)
    model, shift = peaky(config), vector(5, config.d_model)
    edits = [at("blocks.1.q_input", Add(shift), head=1), *(at(f"blocks.*.{p}_input", Add(shift)) for p in "kv")]
    tokens = jnp.tile(TOKENS, (4, 1))
    expected, acts = call(read(edit(model, edits), "blocks.*.q_input"), tokens)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=True)
    with jax.set_mesh(mesh):
        placed = shard(model, rules(config), mesh)
        logits, got = call(read(edit(placed, edits), "blocks.*.q_input"), shard_batch(tokens, mesh))
        np.testing.assert_allclose(jax.device_get(logits), expected, rtol=2e-4, atol=5e-5)
        for address in acts:
            np.testing.assert_allclose(jax.device_get(got[address]), acts[address], rtol=2e-4, atol=5e-5)
