"""Decomposed matrices: the target's bits, masks as edits, layouts, ties, gradients."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_tms import TIED, Tiny, sparse, tiny

from jax_interp.core.errors import UserError
from jax_interp.decomposition import Components, DecompositionConfig, decompose, masked_output, train_instances
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.linearity.masked_function import importance_matrix, mask_decomposition
from jax_interp.decomposition.masks import Mask, edits
from jax_interp.decomposition.matrices import matrices, select_matrices
from jax_interp.models import Config, init
from jax_interp.surgery import Scale, Zero, at, edit, grad_at, read, replan
from jax_interp.toys.layers import Linear
from jax_interp.toys.tms import TMSConfig, init_tms

CONFIG = Config(n_layers=2, d_model=8, n_heads=2, d_mlp=12, vocab_size=17, n_ctx=8, qkv_bias=True, tied_embedding=False)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 17, (2, 5)), jnp.int32)


def test_what_patterns_mean():
    model = init(CONFIG, jax.random.key(0))
    assert matrices(model)["blocks.1.mlp.up"] == (8, 12)
    assert {"embed", "unembed"} <= set(matrices(model))
    assert not [name for name in matrices(model) if "ln" in name]
    assert select_matrices(model, "blocks.*.mlp") == [f"blocks.*.mlp.{n}" for n in ("down", "gate", "up")]
    keys_and_queries = ["blocks.*.attn.k", "blocks.*.attn.q", "unembed"]
    assert select_matrices(model, ["blocks.*.attn.[qk]", "unembed"]) == keys_and_queries
    assert set(select_matrices(replan(model, "*"), "blocks.1.mlp.up")) == {"blocks.1.mlp.up"}
    assert list(matrices(tiny())) == ["linear1", "linear2"]
    with pytest.raises(UserError, match=r"no matrix matches 'blocks.*mpl'.*blocks\.\*\.mlp\.up"):
        select_matrices(model, "blocks.*.mpl")
    with pytest.raises(UserError, match="C=-1 for 'linear1': a matrix has at least 1"):
        decompose(tiny(), "linear1", C=-1, key=jax.random.key(0))
    with pytest.raises(UserError, match="C has no pattern that matches 'linear1'"):
        decompose(tiny(), "linear1", C={"linear2": 3}, key=jax.random.key(0))


def test_no_mask_no_change_in_every_layout():
    """The target's bits, read or not; components draws do not depend on the layout; masks act alike."""
    stacked = init(CONFIG, jax.random.key(0))
    mask = jax.random.uniform(jax.random.key(5), (2, 2, 5, 7))
    outputs = []

    @jax.jit
    def all_three(parts, mask, tokens):
        masks = {"blocks.*.mlp.up": Mask(mask, jnp.zeros(()))}
        read_too = read(parts, "blocks.*.mlp.up.components")(tokens)
        return parts.target(tokens), read_too, masked_output(parts, masks, tokens)

    for model in (stacked, replan(stacked, "*")):
        parts = decompose(model, ["blocks.*.mlp.up", "blocks.*.attn.q"], C=7, key=jax.random.key(1))
        assert set(parts.components) == {"blocks.*.mlp.up", "blocks.*.attn.q"}
        plain, (seen, acts), masked = all_three(parts, mask, TOKENS)
        np.testing.assert_array_equal(seen, plain)
        assert acts["blocks.*.mlp.up.components"].shape == (2, 2, 5, 7)
        outputs.append(masked)
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], rtol=2e-5, atol=2e-6)
    assert np.abs(outputs[0] - plain).max() > 1e-3


def test_masked_forward_is_the_formula():
    """((x V) m) U + m_Δ x (W - V U) + b at both matrices of a tied toy, in float64 by numpy."""
    model, x = tiny(), sparse(jax.random.key(0), batch=6, p=0.7)
    parts = decompose(model, ["linear1", "linear2"], C=4, key=jax.random.key(1), tied=TIED)
    rng = np.random.default_rng(0)
    masks = {n: Mask(jnp.asarray(rng.random((6, 4)), jnp.float32), jnp.asarray(rng.random((6, 1)), jnp.float32))
             for n in parts.names}  # fmt: skip

    W, b = np.asarray(model.linear1.weight, float), np.asarray(model.linear2.bias, float)
    V, U = (np.asarray(m, float) for m in (parts.of("linear1").V, parts.of("linear1").U))

    def layer(x, V, U, W, mask):
        return ((x @ V) * np.asarray(mask.components)) @ U + np.asarray(mask.delta) * (x @ (W - V @ U))

    h = layer(np.asarray(x, float), V, U, W, masks["linear1"])
    want = np.maximum(layer(h, U.T, V.T, W.T, masks["linear2"]) + b, 0)
    np.testing.assert_allclose(masked_output(parts, masks, x), want, rtol=1e-5, atol=1e-6)
    assert set(parts.components) == {"linear1"}
    assert parts.names == ("linear1", "linear2")
    np.testing.assert_allclose(parts.delta("linear2"), (W - V @ U).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_few_parts_alone_are_as_exact_as_their_own_product(dtype, bias):
    """Two of 256 components on and Δ off: rounding is that of `(x m) U + b`, however large the target's output is. With
    V = I and U = W; masks of 1 give the target's bits."""
    rng = np.random.default_rng(0)
    W, x, b = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((256, 256), (64, 256), (256,)))
    W, b = W / 16, b if bias else None
    mask = jnp.asarray(rng.permuted(np.arange(256)[None] < 2 * np.ones((64, 1)), axis=1), dtype)
    parts = Decomposed(Tiny(Linear(W, b), Linear(W.T)), {"linear1": Components(jnp.eye(256), W.astype(jnp.float32))})

    @jax.jit
    def output(parts, mask, delta, x):
        masked = edit(parts, *edits({"linear1": Mask(mask, delta)}))
        return read(masked, "linear1.output", output=False)(x)["linear1.output"]

    plain = jax.jit(lambda x: x @ W if b is None else x @ W + b[None])
    exact = lambda a: np.asarray(a, np.float64)
    want = exact(x * mask) @ exact(W) + (exact(b)[None] if bias else 0)
    off = lambda y: np.linalg.norm(exact(y) - want) / np.linalg.norm(want)
    assert off(output(parts, mask, jnp.zeros((), dtype), x)) < 1.2 * off(plain(x * mask))
    np.testing.assert_array_equal(output(parts, jnp.ones_like(mask), jnp.ones((), dtype), x), plain(x))


def test_edits_gradients_and_vmap_reach_components():
    model, x = tiny(), sparse(jax.random.key(0), batch=6, p=0.7)
    parts = decompose(model, "linear1", C=4, key=jax.random.key(1))
    only = lambda c: edit(parts, at("linear1.delta", Zero()), at("linear1.components", Scale(jnp.eye(4)[c])))
    each = jax.vmap(lambda c: read(only(c), "linear1.output", output=False)(x)["linear1.output"])(jnp.arange(4))
    np.testing.assert_allclose(each.sum(0), x @ parts.of("linear1").product(), rtol=1e-4, atol=1e-5)
    # d loss / d (inner activations), against the chain rule
    _, grads = grad_at(parts, "linear1.components")(lambda y: jnp.sum(y**2))(x)
    h = x @ model.linear1.weight
    slope = jax.grad(lambda h: jnp.sum(jax.nn.relu(h @ model.linear2.weight + model.linear2.bias[None]) ** 2))(h)
    np.testing.assert_allclose(grads["linear1.components"], slope @ parts.of("linear1").U.T, rtol=1e-4, atol=1e-5)
    # Δ is differentiable: at mask r for components and Δ alike, the output does not depend on V and U at r = 1
    half = {"linear1": Mask(jnp.full((6, 4), 0.5), jnp.full((6, 1), 0.5))}
    loss = lambda pairs: jnp.sum(masked_output(dataclasses.replace(parts, components=pairs), half, x))
    for leaf in jax.tree.leaves(jax.grad(loss)(parts.components)):
        np.testing.assert_allclose(leaf, 0, atol=1e-5)  # .5 V U + .5 (W - V U) = .5 W
    with pytest.raises(UserError, match=r"linear2\.components"):
        edit(parts, at("linear2.components", Zero()))(x)


def test_initial_values():
    """ "unit": unit columns and rows, scaled by their product with W; "normal": by standard deviation."""
    model = tiny(40, 20)
    unit = decompose(model, "linear1", C=300, key=jax.random.key(0), init="unit").of("linear1")
    np.testing.assert_allclose(jnp.linalg.norm(unit.V, axis=0), 1, rtol=1e-5)
    directions = unit.U / jnp.linalg.norm(unit.U, axis=1, keepdims=True)
    scale = np.einsum("ic,co,io->c", unit.V, directions, model.linear1.weight)
    np.testing.assert_allclose(jnp.linalg.norm(unit.U, axis=1), np.abs(scale), rtol=1e-3, atol=1e-5)
    normal = decompose(model, "linear1", C=300, key=jax.random.key(0)).of("linear1")
    assert abs(float(normal.V.std()) * 40**0.5 - 1) < 0.05
    assert abs(float(normal.U.std()) * 300**0.5 - 1) < 0.05


def test_one_order_of_matrices_inside_jit_and_out():
    """Eleven numbered matrices, which a dict inside jit has as 0, 1, 10, 2, ...: parts are masked where they were asked
    to be. With V = W and U = I a mask switches columns of W."""
    rng = np.random.default_rng(0)
    W, on, x = rng.standard_normal((11, 3, 3)), rng.random((11, 6, 3)) < 0.7, rng.standard_normal((6, 3))
    layers = nnx.List([nnx.data(Linear(jnp.asarray(w, jnp.float32))) for w in W])
    model = dataclasses.replace(init_tms(jax.random.key(0), TMSConfig(3, 3, relu=False)), hidden_layers=layers)
    drawn = decompose(model, "hidden_layers", C=3, key=jax.random.key(0))
    pairs = {name: Components(drawn.weight(name), jnp.eye(3)) for name in drawn.components}
    parts = dataclasses.replace(drawn, components=pairs)
    importance = {f"hidden_layers.{i}": jnp.asarray(on[i], jnp.float32) for i in range(11)}
    ends = np.asarray(model.linear1.weight, float)
    right = masked = x @ ends
    for w, keep in zip(W, on, strict=True):
        right, masked = right @ w, masked @ w * keep
    strict = np.mean(((masked - right) @ ends.T) ** 2)
    for one in (parts, jax.jit(lambda parts: parts)(parts)):
        assert one.names == parts.names
        of, data = mask_decomposition(one), jnp.asarray(x, jnp.float32)
        error = jnp.mean((of.run(importance_matrix(one, importance), data) - of.target(data)) ** 2)
        np.testing.assert_allclose(error, strict, rtol=1e-4)


def test_an_embedding_is_a_matrix_too():
    model = init(CONFIG, jax.random.key(0))
    parts = decompose(model, "embed", C=5, key=jax.random.key(1))
    acts = read(parts, "embed.components", output=False)(TOKENS)
    np.testing.assert_array_equal(acts["embed.components"], parts.of("embed").V[TOKENS])
    left = read(edit(parts, at("embed.delta", Zero())), "embed.output", output=False)(TOKENS)["embed.output"]
    np.testing.assert_allclose(left, parts.of("embed").product()[TOKENS], rtol=1e-4, atol=1e-6)


def test_what_is_tied_is_checked():
    """By value where there are values, by shape inside jit; a twin that holds no matrix is called with the other's."""
    model, key = tiny(), jax.random.key(1)
    tie = lambda model, *pair: decompose(model, "linear1", C=4, key=key, tied=(pair,))
    moved = dataclasses.replace(model.linear2, weight=model.linear2.weight + 1e-6)
    with pytest.raises(UserError, match="'linear2' is not the transpose of 'linear1'"):
        tie(dataclasses.replace(model, linear2=moved), "linear1", "linear2")
    square = dataclasses.replace(model, linear2=dataclasses.replace(moved, weight=jnp.ones((3, 5))))
    with pytest.raises(UserError, match="not the transpose"):
        jax.jit(lambda model: tie(model, "linear1", "linear2"))(square)
    with pytest.raises(UserError, match="no 'linaer2'; its matrices are linear1, linear2"):
        tie(model, "linear1", "linaer2")
    assert tie(model, "linear1", "linear2").names == ("linear1", "linear2")
    assert tie(init_tms(key, TMSConfig()), "linear1", "linear2").names == ("linear1", "linear2")
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), model, dataclasses.replace(model, linear2=moved))
    with pytest.raises(UserError, match="not the transpose"):
        train_instances(DecompositionConfig(tied=TIED, batch=256), model, seeds=(0, 1), models=models, sample=sparse)


def test_components_of_the_transpose():
    pair = Components(jnp.arange(6.0).reshape(3, 2), jnp.arange(8.0).reshape(2, 4))
    np.testing.assert_array_equal(pair.T.product(), pair.product().T)
