"""The parts add up: to the residual stream at every layer, in every kind of block and layout."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.analysis import (
    NEEDED,
    Parts,
    accumulated_bias,
    accumulated_resid,
    apply_ln_to_stack,
    decompose_resid,
    get_full_resid_decomposition,
    logit_lens,
    needed,
    norm_into,
    stack_head_results,
    stack_neuron_results,
)
from jax_interp.core.errors import UserError
from jax_interp.surgery import Add, AddressError, Each, Scale, at, edit, read, replan

CONFIGS = {
    "gpt2": GPT2_LIKE,
    "llama": LLAMA_LIKE,
    "gemma": replace(LLAMA_LIKE, norm_offset=True, norm_places="around", embed_scale=5.0, logit_softcap=30.0),
    "olmo": replace(LLAMA_LIKE, norm_places="after", qk_norm="all heads"),
    "layernorms around": replace(GPT2_LIKE, norm_places="around"),
    "one norm": replace(GPT2_LIKE, parallel="one norm", tied_embedding=False, unembed_bias=True),
    "attention only": replace(GPT2_LIKE, d_mlp=0, positions="alibi"),
    "no norms": replace(GPT2_LIKE, norm="none", positions="sinusoidal", act="solu", mlp_norm=True),
    "experts": replace(LLAMA_LIKE, n_experts=4),
}
ALONG = np.random.default_rng(3).standard_normal((2, 9, 32)).astype(np.float32)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, call, tokens):
    """(model, its activations, everything that is tested), by one compiled program for a model of mixed layout."""
    model = replan(peaky(CONFIGS[request.param]), 1)
    _, acts = call(read(model, needed(model, *NEEDED), *(["blocks.1.resid_post"])), tokens)
    neurons = not model.config.n_experts

    def everything(model, acts):
        found = {"all": decompose_resid(model, acts), "before 2": decompose_resid(model, acts, 2)}
        found["heads"] = stack_head_results(model, acts, 2, incl_remainder=True)
        for n in (0, 2, None):
            found[f"full {n}"] = get_full_resid_decomposition(model, acts, n, expand_neurons=neurons)
        found["normed"] = get_full_resid_decomposition(model, acts, expand_neurons=neurons, apply_ln=True)
        found["normed along"] = get_full_resid_decomposition(
            model, acts, expand_neurons=neurons, apply_ln=True, onto=jnp.asarray(ALONG)
        )
        found["normed heads"] = stack_head_results(model, acts, apply_ln=True, incl_remainder=True, pos=-1)
        if neurons and model.config.d_mlp:
            found["neurons"] = stack_neuron_results(model, acts, 2, incl_remainder=True)
        return found

    return model, acts, jax.jit(everything)(model, acts)


def close(got, wanted, rtol=1e-5):
    np.testing.assert_allclose(got, wanted, atol=rtol * float(np.abs(wanted).max()), rtol=0)


def test_components_heads_and_neurons_sum_to_the_stream(case):
    _, acts, found = case
    middle, last = acts["blocks.1.resid_post"], acts["blocks.-1.resid_post"]
    close(found["before 2"].sum(), middle)
    close(found["full 2"].sum(), middle)
    close(found["heads"].sum(), middle)
    close(found["all"].sum(), last)
    close(found["full None"].sum(), last)
    close(found["full 0"].sum(), acts["blocks.*.resid_pre"][0])
    if "neurons" in found:
        close(found["neurons"].sum(), middle)


def test_heads_and_biases_sum_to_what_attention_adds(case):
    model, acts, found = case
    heads = found["full 2"]
    first = sum(heads[f"L0H{h}"] for h in range(model.config.n_heads))
    if model.config.norm_places == "before":
        bias = accumulated_bias(model, 1, include_mlp_biases=False)
        close(first + jnp.broadcast_to(bias, first.shape), acts["blocks.*.attn_out"][0])
    elif model.config.norm == "rmsnorm":  # no biases
        close(first, acts["blocks.*.attn_out"][0])


def test_through_the_final_norm_rows_sum_to_what_it_gives(case):
    model, acts, found = case
    if model.config.norm == "none":
        close(found["normed"].sum(), acts["blocks.-1.resid_post"])
        return
    norm = norm_into(model, acts)
    bias = jnp.zeros(32) if norm.bias is None else norm.bias
    final = model.ln_final(acts["blocks.-1.resid_post"], _Nothing())
    close(found["normed"].sum() + jnp.broadcast_to(bias, final.shape), final)
    close(found["normed heads"].sum() + jnp.broadcast_to(bias, final[:, -1].shape), final[:, -1])


def test_along_a_direction_is_the_scalar_product(case):
    _, _, found = case
    close(found["normed along"].values, np.einsum("rbpd,bpd->rbp", found["normed"].values, ALONG), 3e-5)
    assert found["normed along"].labels == found["normed"].labels


def test_layouts_agree_and_positions_are_taken(case):
    model, acts, found = case
    for unroll in ((), "*"):
        other = stack_head_results(replan(model, unroll), acts, 2, pos=slice(2, 5))
        close(other.values, found["heads"].values[:-1, :, 2:5])
    last = decompose_resid(model, acts, pos=jnp.asarray([8]))
    np.testing.assert_array_equal(last.values, found["all"].values[:, :, 8:])


def test_vmap_over_sequences(call):
    """All of it is a pure function: here of one sequence, mapped."""
    model = peaky(LLAMA_LIKE)
    batch = jnp.asarray(np.random.default_rng(1).integers(0, 61, (3, 1, 7)))

    def last_token_parts(tokens):
        acts = read(model, needed(model, get_full_resid_decomposition), output=False)(tokens)
        return get_full_resid_decomposition(model, acts, expand_neurons=False, pos=-1)

    mapped = jax.jit(jax.vmap(last_token_parts))(batch)
    assert mapped.values.shape == (3, 3 * 4 + 3 + 2, 1, 32)
    close(mapped.values[1], last_token_parts(batch[1]).values)


def test_under_surgery_the_parts_are_those_of_the_edited_run(call, tokens):
    model = peaky(GPT2_LIKE)
    edited = edit(model, at("blocks.1.attn.z", Scale(3.0), head=2), at("blocks.*.mlp.post", Each(Add(jnp.ones(3)))))
    _, acts = call(read(edited, needed(edited, get_full_resid_decomposition)), tokens)
    close(get_full_resid_decomposition(edited, acts).sum(), acts["blocks.-1.resid_post"])


def test_accumulated_stream():
    model, tokens = peaky(GPT2_LIKE), jnp.asarray([[1, 2, 3]])
    acts = read(model, needed(model, accumulated_resid), output=False)(tokens)
    stack = accumulated_resid(model, acts, incl_mid=True)
    assert stack.labels == ("0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post")
    np.testing.assert_array_equal(stack["1_mid"], acts["blocks.1.resid_mid"])
    stack = accumulated_resid(model, acts, 1, mlp_input=True, pos=-1)
    assert stack.labels == ("0_pre", "1_pre", "1_mid")
    np.testing.assert_array_equal(stack["1_pre"], acts["blocks.1.resid_pre"][:, -1])


def test_bfloat16_is_added_up_in_float32(call, tokens):
    model = peaky(LLAMA_LIKE, dtype=jnp.bfloat16)
    _, acts = call(read(model, needed(model, get_full_resid_decomposition)), tokens)
    full = get_full_resid_decomposition(model, acts)
    assert full.values.dtype == jnp.float32
    close(full.sum(), acts["blocks.-1.resid_post"].astype(jnp.float32), 2e-2)


def test_biases_of_experts_are_those_of_attention():
    biases = accumulated_bias(peaky(replace(CONFIGS["experts"], out_bias=True)))
    assert biases.shape == (32,)
    assert biases.any()


def test_a_whole_stack_through_a_layers_norm(call, tokens):
    model = peaky(GPT2_LIKE)
    _, acts = call(read(model, needed(model, decompose_resid), "blocks.1.ln2.scale", "blocks.1.ln2.normalized"), tokens)
    rows = apply_ln_to_stack(model, acts, decompose_resid(model, acts, 1, mlp_input=True), 1, mlp_input=True)
    assert isinstance(rows, Parts)
    weight = model.blocks[0].block.ln2.weight[1]
    close(rows.sum(), acts["blocks.1.ln2.normalized"] * jnp.reshape(weight, (1, 1, -1)))


@pytest.fixture(scope="module")
def few():
    """Some values, and not others."""
    names = ("embed", "blocks.*.attn_out", "blocks.1.resid_pre")
    return read(peaky(GPT2_LIKE), *names, output=False)(jnp.ones((1, 4), int))


def test_what_was_not_read(few):
    with pytest.raises(AddressError, match="pos_embed"):
        decompose_resid(peaky(GPT2_LIKE), few)
    with pytest.raises(AddressError, match=r"resid_pre' was not read at layers \[0, 2\]"):
        accumulated_resid(peaky(GPT2_LIKE), few)


def test_no_such_layer_mode_or_part(few):
    model = peaky(GPT2_LIKE)
    with pytest.raises(UserError, match="from 0 to 3"):
        decompose_resid(model, few, 4)
    with pytest.raises(UserError, match="choose from all, attn, mlp"):
        decompose_resid(model, few, mode="attention")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="L1H3"):
        Parts(jnp.zeros((2, 1)), ("L1H3", "L0H1"))["L1H33"]
    with pytest.raises(UserError, match="pos=7"):
        decompose_resid(model, few, mode="attn", incl_embeds=False, pos=7)


def test_what_a_family_does_not_have(few):
    parallel = peaky(CONFIGS["one norm"])
    with pytest.raises(UserError, match="its blocks are parallel"):
        accumulated_resid(parallel, few, incl_mid=True)
    with pytest.raises(UserError, match="leave mlp_input out"):
        decompose_resid(parallel, few, 1, mlp_input=True)
    with pytest.raises(UserError, match="4 experts"):
        stack_neuron_results(peaky(CONFIGS["experts"]), few)
    with pytest.raises(UserError, match="norms stand between"):
        accumulated_bias(peaky(CONFIGS["gemma"]))
    with pytest.raises(UserError, match="its norms stand after"):
        apply_ln_to_stack(peaky(CONFIGS["olmo"]), few, jnp.zeros((1, 1, 4, 32)), 1)


def test_what_is_no_decoder(few):
    with pytest.raises(UserError, match=r"needs a decoder .*got function"):
        decompose_resid(lambda x: x, few)


def test_needed():
    model = peaky(CONFIGS["attention only"])
    assert needed(model, logit_lens, decompose_resid) == (
        "blocks.*.resid_pre",
        "blocks.-1.resid_post",
        "embed",
        "blocks.*.attn_out",
    )
    with pytest.raises(UserError, match="reads no activations"):
        needed(model, accumulated_bias)


class _Nothing:
    """A scope for calling a norm by itself."""

    def __call__(self, name, x, axes=""):
        return x
