"""A model under surgery goes through JAX's transformations like the model itself, in every layout."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.surgery import Add, Each, Replace, Scale, Zero, at, edit, grad_at, read
from tests.surgery.conftest import CONFIG, DEPTH

call = jax.jit(lambda f, *args: f(*args))


def close(a, b, tolerance=2e-5):
    chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)


def metric(logits):
    return jnp.sum(logits[:, -1, 7] - logits[:, -1, 8])


@pytest.fixture(scope="module")
def vector():
    return jax.random.normal(jax.random.key(2), (CONFIG.d_model,))


def test_jit_inside_jit_and_without(model, tokens, vector):
    surgery = read(edit(model, at("blocks.3.resid_post", Add(vector))), "blocks.*.resid_post")
    inside = jax.jit(lambda f, tokens: jax.jit(lambda f, tokens: f(tokens))(f, tokens))
    chex.assert_trees_all_equal(call(surgery, tokens), inside(surgery, tokens))
    close(call(surgery, tokens), surgery(tokens))


def test_vmap_over_edits(model, tokens, vector):
    coefficients = jnp.array([0.0, -1.0, 2.5])
    swept = jax.jit(jax.vmap(lambda c: edit(model, at("blocks.3.resid_post", Add(vector, c)))(tokens)))(coefficients)
    for coefficient, got in zip(coefficients, swept, strict=True):
        close(got, call(edit(model, at("blocks.3.resid_post", Add(vector, coefficient))), tokens))


def test_vmap_over_a_stack_of_edits_as_pytrees(model, tokens):
    edits = [at("blocks.2.mlp_out", Add(jnp.full(CONFIG.d_model, float(i))), pos=i) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *edits)
    swept = jax.jit(jax.vmap(lambda one: edit(model, one)(tokens)))(stacked)
    for one, got in zip(edits, swept, strict=True):
        close(got, call(edit(model, one), tokens))


def test_vmap_over_inputs(model, tokens, vector):
    surgery = read(edit(model, at("blocks.3.resid_post", Add(vector), pos=2)), "blocks.*.attn.z")
    got = jax.jit(jax.vmap(surgery))(tokens[:, None])
    expected = call(surgery, tokens)
    close(got[0][:, 0], expected[0])
    close(got[1]["blocks.*.attn.z"][:, :, 0], jnp.moveaxis(expected[1]["blocks.*.attn.z"], 1, 0))


def test_a_sweep_over_layer_and_position_is_every_single_patch(model, tokens):
    donor = call(read(model, "blocks.*.resid_post"), tokens[:, ::-1])[1]["blocks.*.resid_post"]

    def patched(layer, pos):
        return edit(model, at("blocks.resid_post", Each(Replace(donor)), layer=layer, pos=pos))(tokens)

    positions = jnp.array([0, 5, 11])
    grid = jax.jit(jax.vmap(jax.vmap(patched, (None, 0)), (0, None)))(jnp.arange(DEPTH), positions)
    for layer in (0, 3, DEPTH - 1):
        for i, pos in enumerate(positions):
            edits = at(f"blocks.{layer}.resid_post", Replace(donor[layer]), pos=pos)
            close(grid[layer, i], call(edit(model, edits), tokens))


def test_grad_with_respect_to_parameters_inputs_and_edits(base, model, tokens, vector):
    """All three against the same derivative in the scanned layout, and the edit's against finite differences."""

    def loss(model, v, x):
        edits = at("embed", Add(x)), at("blocks.2.resid_post", Add(v)), at("blocks.4.mlp_out", Scale(0.5))
        return metric(edit(model, *edits)(tokens))

    x = jnp.zeros((CONFIG.d_model,))
    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(model, vector, x)
    reference = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(base, vector, x)
    close(grads[1:], reference[1:], 1e-4)
    close(grads[0].embed.weight[...], reference[0].embed.weight[...], 1e-4)
    total = lambda model: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(model.blocks))
    np.testing.assert_allclose(total(grads[0]), total(reference[0]), rtol=1e-4)


def test_an_ablated_part_has_no_gradient(model, tokens):
    grads = jax.jit(jax.grad(lambda model: metric(edit(model, at("blocks.*.mlp_out", Zero()))(tokens))))(model)
    for segment in grads.blocks:
        block = getattr(segment, "block", segment)
        assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(block.mlp))
        assert all(jnp.any(leaf) for leaf in jax.tree.leaves(block.attn))


ADDRESSES = ("embed", "blocks.*.resid_post", "blocks.1:4.mlp.post", "blocks.3.attn.z", "blocks.2.attn.pattern")


def test_grad_at_is_the_gradient_with_respect_to_an_added_value(model, tokens):
    value, grads = jax.jit(lambda model: grad_at(model, *ADDRESSES)(metric)(tokens))(model)
    np.testing.assert_allclose(value, metric(call(model, tokens)), rtol=1e-6)
    acts = call(read(model, *ADDRESSES), tokens)[1]
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, acts)
    z = "blocks.3.attn.z"
    by_hand = jax.grad(lambda d: metric(edit(model, at(z, Add(d)))(tokens)))(jnp.zeros_like(acts[z]))
    close(grads[z], by_hand, 1e-5)


def test_grad_at_sees_the_values_after_the_edits_of_the_model(model, tokens, vector):
    edited = edit(model, at("blocks.1.resid_post", Add(vector)))
    value, grads = grad_at(edited, "blocks.1.resid_post")(metric)(tokens)
    np.testing.assert_allclose(value, metric(call(edited, tokens)), rtol=1e-5)
    by_hand = jax.grad(lambda v: metric(call(edit(model, at("blocks.1.resid_post", Add(v))), tokens)))(vector)
    close(jnp.sum(grads["blocks.1.resid_post"], (0, 1)), by_hand, 1e-4)


def test_grad_at_goes_through_edits_that_come_later(model, tokens):
    """An edit after every address asked for is part of what the gradient passes through."""
    halved = edit(model, at("logits", Scale(0.5)))
    _, grads = grad_at(halved, "blocks.1.resid_post")(jnp.sum)(tokens)
    _, plain = grad_at(model, "blocks.1.resid_post")(jnp.sum)(tokens)
    name = "blocks.1.resid_post"
    np.testing.assert_allclose(grads[name], 0.5 * plain[name], rtol=1e-5, atol=1e-7)


def test_the_metric_of_grad_at_may_be_of_what_is_read(model, tokens):
    reading = read(model, "blocks.3.resid_post")
    norm = lambda out: jnp.sum(out[1]["blocks.3.resid_post"] ** 2) / 2
    value, grads = grad_at(reading, "blocks.3.resid_mid", "blocks.4.resid_mid")(norm)(tokens)
    assert jnp.any(grads["blocks.3.resid_mid"])
    assert not jnp.any(grads["blocks.4.resid_mid"])
    np.testing.assert_allclose(value, norm(call(reading, tokens)), rtol=1e-5)


def test_gradients_flow_through_readings(model, tokens, vector):
    def norm(v):
        _, acts = read(edit(model, at("blocks.1.resid_post", Add(v))), "blocks.*.resid_post")(tokens)
        return jnp.sum(acts["blocks.3.resid_post"]) + jnp.sum(acts["blocks.0.resid_post"])

    eps, direction = 1e-2, jax.random.normal(jax.random.key(4), vector.shape)
    numeric = (norm(vector + eps * direction) - norm(vector - eps * direction)) / (2 * eps)
    np.testing.assert_allclose(jnp.vdot(jax.grad(norm)(vector), direction), numeric, rtol=2e-2)


@pytest.mark.parametrize(
    "policy",
    [True, jax.checkpoint_policies.save_only_these_names("attn_out", "mlp.post")],
    ids=["everything", "by site name"],
)
def test_remat_changes_no_gradient_and_reads_as_well(model, tokens, vector, policy):
    def loss(v, remat):
        surgery = read(edit(model, at("blocks.2.resid_post", Add(v))), "blocks.*.mlp.post", "blocks.3.attn.z")
        logits, acts = surgery(tokens, remat=remat)
        return metric(logits) + jnp.sum(acts["blocks.3.attn.z"]) + jnp.sum(acts["blocks.*.mlp.post"])

    plain = jax.jit(jax.value_and_grad(lambda v: loss(v, None)))(vector)
    close(jax.jit(jax.value_and_grad(lambda v: loss(v, policy)))(vector), plain, 1e-5)


def test_a_remat_policy_by_site_name_saves_those_and_recomputes_the_rest(base, tokens):
    """What a policy saves is what the backward pass is given: of a scanned block one `[layer, ...]` array a name."""

    def saved(policy):
        residuals = jax.eval_shape(lambda m: jax.vjp(lambda m: metric(m(tokens, remat=policy)), m)[1], base)
        return {leaf.shape for leaf in jax.tree.leaves(residuals)}

    post = (DEPTH, *tokens.shape, CONFIG.d_mlp)
    only = jax.checkpoint_policies.save_only_these_names
    assert post not in saved(True)
    assert post in saved(only("mlp.post"))
    assert (DEPTH, *tokens.shape, CONFIG.n_heads, 16) in saved(only("attn.z"))
    assert post not in saved(only("attn.z"))
