"""Attributions sum to the logits, and are the gradient times the part wherever that is the same thing."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.analysis import (
    decompose_resid,
    direct_logit_attribution,
    logit_attrs,
    needed,
    stack_head_results,
)
from jax_interp.core.errors import UserError
from jax_interp.surgery import edit, grad_at, read, restore
from jax_interp.surgery.activations import Activations

CONFIGS = {
    "gpt2": GPT2_LIKE,
    "llama": LLAMA_LIKE,
    "gemma": replace(LLAMA_LIKE, norm_offset=True, norm_places="around", logit_softcap=30.0, logit_scale=0.5),
    "parallel": replace(GPT2_LIKE, parallel="one norm", tied_embedding=False, unembed_bias=True),
}
RIGHT, WRONG = np.asarray([3, 7]), np.asarray([5, 11])


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, call, tokens):
    model = peaky(CONFIGS[request.param])
    logits, acts = call(read(model, needed(model, direct_logit_attribution)), tokens)
    if cap := model.config.logit_softcap:
        logits = cap * jnp.arctanh(logits / cap)
    return model, acts, np.asarray(logits)


@pytest.mark.parametrize("unit", ["component", "head", "neuron"])
def test_sum_to_the_logit_and_to_the_difference(case, unit, tokens):
    model, acts, logits = case

    @jax.jit
    def attributions(model, acts):
        one = direct_logit_attribution(model, acts, jnp.asarray(RIGHT), unit=unit)
        two = direct_logit_attribution(model, acts, jnp.asarray(RIGHT), jnp.asarray(WRONG), unit=unit)
        every = direct_logit_attribution(model, acts, tokens, unit=unit, pos=None)
        return one, two, every

    one, two, every = attributions(model, acts)
    rows = np.arange(2)
    scale = np.abs(logits).max()
    np.testing.assert_allclose(one.sum(), logits[rows, -1, RIGHT], atol=1e-5 * scale)
    difference = logits[rows, -1, RIGHT] - logits[rows, -1, WRONG]
    np.testing.assert_allclose(two.sum(), difference, atol=1e-5 * scale)
    own = np.take_along_axis(logits, np.asarray(tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(every.sum(), own, atol=1e-5 * scale)
    assert one.labels[-1] == "readout"
    assert one.top(3)[0][0] in one.labels


def test_equal_the_gradient_where_all_else_is_held(call, tokens):
    """With the final scale and every other component held, d logit / d part · part is the attribution."""
    model = peaky(GPT2_LIKE)
    names = ("embed", "pos_embed", "blocks.*.attn_out", "blocks.*.mlp_out", "ln_final.scale")
    logits, acts = call(read(model, *names), tokens)
    held = edit(model, *restore(Activations(dict(acts.items()), acts.depth)))
    value, grads = grad_at(held, *names[:-1], "ln_final.normalized")(
        lambda logits: logits[1, -1, 7] - logits[1, -1, 4]
    )(tokens)
    parts = logit_attrs(model, acts, decompose_resid(model, acts, pos=-1), 7, 4, pos=-1)
    for label in parts.labels:
        layer, _, name = label.partition("_")
        address = f"blocks.{layer}.{name}" if layer.isdigit() else label
        product = jnp.sum(grads[address][1, -1] * acts[address][1, -1])
        np.testing.assert_allclose(parts[label][1], product, atol=1e-5, rtol=1e-4, err_msg=label)
    np.testing.assert_allclose(value, logits[1, -1, 7] - logits[1, -1, 4], rtol=1e-5)


def test_a_numpy_reference_in_float64(call, tokens):
    model = peaky(GPT2_LIKE)
    _, acts = call(read(model, needed(model, direct_logit_attribution)), tokens)
    z = np.asarray(acts["blocks.1.attn.z"], np.float64)[0, -1, 2]
    w_o = np.asarray(model.blocks[0].block.attn.o.weight[1], np.float64).reshape(4, 8, 32)[2]
    resid = np.asarray(acts["blocks.-1.resid_post"], np.float64)[0, -1]
    sigma = np.sqrt(resid.var() + 1e-5)
    w, table = np.asarray(model.ln_final.weight[...], np.float64), np.asarray(model.embed.weight[...], np.float64)
    result = z @ w_o
    wanted = (result - result.mean()) / sigma * w @ (table[3] - table[5])
    heads = stack_head_results(model, acts, pos=-1)
    np.testing.assert_allclose(logit_attrs(model, acts, heads, 3, 5, pos=-1)["L1H2"][0], wanted, rtol=1e-4)


def test_vmap_over_positions(case, tokens):
    """The position is data, as is the token."""
    model, acts, logits = case
    at_one = lambda pos, token: direct_logit_attribution(model, acts, token, unit="head", pos=pos).sum()
    sums = jax.jit(jax.vmap(at_one))(jnp.arange(9), tokens[0])
    wanted = logits[:, np.arange(9), tokens[0]].T
    np.testing.assert_allclose(sums, wanted, atol=1e-5 * np.abs(logits).max())


def test_tokens_of_the_wrong_shape_are_refused(case):
    model, acts, _ = case
    with pytest.raises(UserError, match="differ in shape"):
        direct_logit_attribution(model, acts, 3, jnp.asarray([4, 5]))
    with pytest.raises(UserError, match="give pos as a slice"):
        direct_logit_attribution(model, acts, jnp.ones((2, 9), int))
    with pytest.raises(UserError, match="choose from component, head, neuron"):
        direct_logit_attribution(model, acts, 3, unit="layer")  # type: ignore[arg-type]
    assert np.isnan(direct_logit_attribution(model, acts, 10_000).values).all()  # no token, no silent other one
