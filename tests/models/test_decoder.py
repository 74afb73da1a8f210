"""The decoder against an independent float64 reference, and its invariants: parts sum, layouts agree, nothing leaks."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten
from jax_interp.models import Config, Rope, RopeScaling, init
from jax_interp.surgery import Add, Zero, at, edit, read, replan, sites


def reference(config: Config, weights: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Logits of one sequence, in float64, head by head and query by query, written from the papers."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    block = "blocks.0.block."
    n, half = len(tokens), config.d_head // 2

    def norm(x, name, layer=None):
        pick = lambda part: w[f"{name}.{part}"] if layer is None else w[f"{name}.{part}"][layer]
        if config.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * pick("weight")
        return x + pick("bias") if config.norm == "layernorm" else x

    def linear(x, name, layer):
        y = x @ w[f"{block}{name}.weight"][layer]
        return y + w[f"{block}{name}.bias"][layer] if f"{block}{name}.bias" in w else y

    def turn(x, position):
        out = x.copy()
        for i in range(half):
            freq = config.rope.base ** (-2 * i / config.d_head)
            if (s := config.rope.scaling) is not None and s.kind == "llama3":
                wavelength = 2 * math.pi / freq
                low, high = s.original_n_ctx / s.low_freq, s.original_n_ctx / s.high_freq
                if wavelength > low:
                    freq /= s.factor
                elif wavelength > high:
                    smooth = (s.original_n_ctx / wavelength - s.low_freq) / (s.high_freq - s.low_freq)
                    freq = (1 - smooth) * freq / s.factor + smooth * freq
            c, sn = math.cos(position * freq), math.sin(position * freq)
            out[i], out[i + half] = x[i] * c - x[i + half] * sn, x[i + half] * c + x[i] * sn
        return out

    x = w["embed.weight"][tokens]
    if config.positions == "learned":
        x = x + w["pos_embed.weight"][:n]
    for layer in range(config.n_layers):
        y = norm(x, f"{block}ln1", layer)
        q = linear(y, "attn.q", layer).reshape(n, config.n_heads, -1)
        k, v = (linear(y, f"attn.{name}", layer).reshape(n, config.n_kv_heads, -1) for name in "kv")
        z = np.zeros_like(q)
        for head in range(config.n_heads):
            shared = head // (config.n_heads // config.n_kv_heads)
            for i in range(n):
                query, keys = q[i, head], k[: i + 1, shared]
                if config.positions == "rotary":
                    query, keys = turn(query, i), np.stack([turn(key, j) for j, key in enumerate(keys)])
                scores = keys @ query / math.sqrt(config.d_head)
                p = np.exp(scores - scores.max())
                z[i, head] = (p / p.sum()) @ v[: i + 1, shared]
        x = x + linear(z.reshape(n, -1), "attn.o", layer)
        y = norm(x, f"{block}ln2", layer)
        up = linear(y, "mlp.up", layer)
        if config.gated_mlp:
            gate = linear(y, "mlp.gate", layer)
            post = gate / (1 + np.exp(-gate)) * up
        else:
            post = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        x = x + linear(post, "mlp.down", layer)
    x = norm(x, "ln_final")
    return x @ (w["embed.weight"].T if config.tied_embedding else w["unembed.weight"])


def test_logits_are_those_of_an_independent_reference(model, call, tokens):
    weights = {name: np.asarray(value) for name, value in flatten(model).items()}
    expected = np.stack([reference(model.config, weights, row) for row in np.asarray(tokens)])
    np.testing.assert_allclose(call(model, tokens), expected, atol=2e-5)


def test_scanned_unrolled_and_mixed_give_the_same_bits(model, call, tokens):
    bits = call(model, tokens)
    for plan in ("*", "1", "0:2"):
        np.testing.assert_array_equal(call(replan(model, plan), tokens), bits)
    both = [init(model.config, jax.random.key(3), stacked=stacked) for stacked in (True, False)]
    np.testing.assert_array_equal(*[call(one, tokens) for one in both])


@pytest.mark.parametrize("name", ["attn.pattern", "attn.attn_scores", "attn.result", "ln1.scale", "mlp.post"])
@pytest.mark.parametrize("plan", ["stacked", "unrolled"])
def test_asking_for_a_value_changes_no_bit(model, call, tokens, name, plan):
    model = replan(model, "*") if plan == "unrolled" else model
    logits, acts = call(read(model, f"blocks.*.{name}"), tokens)
    np.testing.assert_array_equal(logits, call(model, tokens))
    assert len(acts[f"blocks.*.{name}"]) == model.config.n_layers


def test_fused_attention_is_the_explicit_one_in_bfloat16_too(call, tokens):
    model = peaky(LLAMA_LIKE, dtype=jnp.bfloat16)
    logits, acts = call(read(model, "blocks.*.attn.pattern", "blocks.0.ln1.scale"), tokens)
    np.testing.assert_array_equal(logits, call(model, tokens))
    assert logits.dtype == acts["blocks.*.attn.pattern"].dtype == jnp.bfloat16
    assert acts["blocks.0.ln1.scale"].dtype == jnp.float32


def test_bfloat16_is_near_float32(call, tokens):
    exact, rounded = (call(peaky(LLAMA_LIKE, dtype=dtype), tokens) for dtype in (jnp.float32, jnp.bfloat16))
    error = jnp.linalg.norm(exact - rounded.astype(jnp.float32)) / jnp.linalg.norm(exact)
    assert error < 2e-2


def test_editing_results_edits_their_sum(model, call, tokens):
    by_result = call(edit(model, at("blocks.1.attn.result", Zero(), head=2)), tokens)
    by_z = call(edit(model, at("blocks.1.attn.z", Zero(), head=2)), tokens)
    np.testing.assert_allclose(by_result, by_z, atol=1e-5)
    direction = jax.random.normal(jax.random.key(0), (model.config.d_model,))
    added = call(edit(model, at("blocks.1.attn.result", Add(direction), head=0)), tokens)
    np.testing.assert_allclose(added, call(edit(model, at("blocks.1.attn_out", Add(direction))), tokens), atol=1e-5)


def test_no_gradient_reaches_padding():
    model, tokens = peaky(LLAMA_LIKE), jnp.asarray([[3, 5, 9, 7, 7]])
    mask = jnp.asarray([[True, True, True, False, False]])
    loss = lambda embed: jnp.sum(_with_embedding(model, embed)(tokens, mask=mask)[:, :3] ** 2)
    grads = np.asarray(jax.jit(jax.grad(loss))(model.embed.weight[...]))
    assert np.flatnonzero(np.any(grads, axis=1)).tolist() == [3, 5, 9]


def _with_embedding(model, embed):
    copy = jax.tree.map(lambda leaf: leaf, model)
    copy.embed.weight[...] = embed
    return copy


def test_positions_are_what_one_says(model, call, tokens):
    n = tokens.shape[1]
    there = jnp.arange(n, dtype=jnp.int32)
    np.testing.assert_array_equal(call(model, tokens, positions=there), call(model, tokens))
    shifted = call(model, tokens, positions=there + 5)
    if model.config.positions == "rotary":  # only differences of positions count
        np.testing.assert_allclose(shifted, call(model, tokens), atol=1e-4)
    else:
        assert jnp.max(jnp.abs(shifted - call(model, tokens))) > 0.1


def test_an_edit_at_a_position_means_the_absolute_one(model, call, tokens):
    mask = jnp.ones_like(tokens, dtype=bool).at[0, :3].set(False)
    vector = jnp.ones(model.config.d_model)
    steered = edit(model, at("blocks.0.resid_post", Add(vector), pos=2))
    _, acts = call(read(steered, "blocks.0.resid_post"), tokens, mask=mask)
    _, clean = call(read(model, "blocks.0.resid_post"), tokens, mask=mask)
    moved = jnp.any(acts["blocks.0.resid_post"] != clean["blocks.0.resid_post"], axis=-1)
    assert jnp.argwhere(moved).tolist() == [[0, 5], [1, 2]]


def test_values_have_the_shapes_that_their_names_promise(tokens):
    c, (b, n) = LLAMA_LIKE, tokens.shape
    found = {name: value.shape for name, value in sites(peaky(c))(tokens).items()}
    expected = {
        "attn.q": (b, n, c.n_heads, c.d_head),
        "attn.rot_k": (b, n, c.n_kv_heads, c.d_head),
        "attn.pattern": (b, c.n_heads, n, n),
        "attn.result": (b, n, c.n_heads, c.d_model),
        "ln2.scale": (b, n, 1),
        "mlp.pre_linear": (b, n, c.d_mlp),
        "resid_mid": (b, n, c.d_model),
    }
    assert {name: found[f"blocks.1.{name}"] for name in expected} == expected
    assert found["logits"] == (b, n, c.vocab_size)


def test_remat_by_the_names_of_values_gives_the_same_gradient(model, tokens):
    policy = jax.checkpoint_policies.save_only_these_names("attn_out", "mlp.post")
    loss = lambda model, remat: jnp.mean(model(tokens, remat=remat) ** 2)
    gradients = [jax.jit(jax.grad(loss), static_argnums=1)(model, remat) for remat in (None, True, policy)]
    for other in gradients[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients[0], other)


def test_program_size_does_not_grow_with_depth(tokens):
    def lines(depth: int) -> int:
        config = dataclasses.replace(LLAMA_LIKE, n_layers=depth)
        model = jax.eval_shape(lambda: init(config, jax.random.key(0)))
        return jax.jit(lambda m, t: m(t)).lower(model, tokens).as_text().count("\n")

    assert lines(2) == lines(20)


def test_a_token_outside_the_vocabulary_is_not_silently_another(model, call, tokens):
    for token in (model.config.vocab_size, -1):
        logits = call(model, tokens.at[0, -1].set(token))
        assert jnp.isnan(logits[0, -1]).all()
        np.testing.assert_array_equal(logits[1], call(model, tokens)[1])


def test_more_positions_than_were_learned_is_an_error():
    model = init(GPT2_LIKE, jax.random.key(0))
    with pytest.raises(UserError, match=r"25 positions.*24"):
        model(jnp.zeros((1, 25), jnp.int32))
    with pytest.raises(UserError, match=r"batch, pos"):
        model(jnp.zeros(5, jnp.int32))
    for text in ("def f(", [[1, 2]]):
        with pytest.raises(UserError, match=r"array of token ids.*tokenizer\.encode"):
            model(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 5}, "not a multiple"),
        ({"n_kv_heads": 3}, "n_kv_heads"),
        ({"act": "gelu_old"}, "choose from"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"norm_eps": 0.0}, "positive"),
        ({"rope": Rope(dim=3)}, "even"),
        ({"rope": Rope(dim=64)}, "d_head"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(LLAMA_LIKE, **{"d_head": 0, **change} if "n_heads" in change else change)


def test_rope_scaling_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="low_freq"):
        RopeScaling("llama3", 8.0, low_freq=4.0, high_freq=1.0)
    with pytest.raises(UserError, match="longrope"):
        RopeScaling("longrope", 8.0)  # type: ignore[arg-type]
