"""TransformerLens's research models by its names, against a float64 forward pass written from its definitions."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jax_interp.core.errors import UserError
from jax_interp.models import load, save

N, D, H, DH, F, V, CTX = 2, 24, 3, 8, 40, 31, 16
ATTN_ONLY = {"n_layers": N, "d_model": D, "n_heads": H, "d_head": DH, "n_ctx": CTX, "d_vocab": V, "attn_only": True,
             "normalization_type": "LN", "positional_embedding_type": "standard", "act_fn": None, "d_mlp": None,
             "eps": 1e-5, "init_mode": "gpt2", "n_params": 4608, "device": "cpu"}  # fmt: skip
MODELS = {
    "attention only": ATTN_ONLY,
    "solu": ATTN_ONLY | {"attn_only": False, "d_mlp": F, "act_fn": "solu_ln"},
    "solu, folded": ATTN_ONLY | {"attn_only": False, "d_mlp": F, "act_fn": "solu_ln", "normalization_type": "LNPre"},
    "gelu": ATTN_ONLY | {"attn_only": False, "d_mlp": F, "act_fn": "gelu"},
    "rotary, unscaled": ATTN_ONLY | {"positional_embedding_type": "rotary", "rotary_dim": 4, "use_attn_scale": False},
}


def state_of(config: dict) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32) * 0.4
    state = {"embed.W_E": draw(V, D), "unembed.W_U": draw(D, V), "unembed.b_U": draw(V)}
    if config["positional_embedding_type"] == "standard":
        state["pos_embed.W_pos"] = draw(CTX, D)
    norms = ["ln_final"]
    for i in range(N):
        b = f"blocks.{i}."
        state |= {f"{b}attn.W_{x}": draw(H, D, DH) for x in "QKV"} | {f"{b}attn.b_{x}": draw(H, DH) for x in "QKV"}
        state |= {f"{b}attn.W_O": draw(H, DH, D), f"{b}attn.b_O": draw(D), f"{b}attn.IGNORE": np.zeros(1, np.float32)}
        norms.append(f"{b}ln1")
        if not config["attn_only"]:
            state |= {f"{b}mlp.W_in": draw(D, F), f"{b}mlp.b_in": draw(F)}
            state |= {f"{b}mlp.W_out": draw(F, D), f"{b}mlp.b_out": draw(D)}
            norms += [f"{b}ln2", *([f"{b}mlp.ln"] if config["act_fn"] == "solu_ln" else [])]
    if config["normalization_type"] == "LN":
        for name in norms:
            width = F if name.endswith("mlp.ln") else D
            state |= {f"{name}.w": 1 + draw(width), f"{name}.b": draw(width)}
    return state


def forward(config: dict, state: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    s = {name: value.astype(np.float64) for name, value in state.items()}
    n = len(tokens)

    def ln(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["eps"])
        return x * s[f"{name}.w"] + s[f"{name}.b"] if config["normalization_type"] == "LN" else x

    def rotate(x):  # [head, pos, d_head], halves of the first rotary_dim features paired
        half, out = config["rotary_dim"] // 2, x.copy()
        for p in range(n):
            for i in range(half):
                angle = p * 10_000 ** (-2 * i / config["rotary_dim"])
                a, b = x[:, p, i], x[:, p, i + half]
                out[:, p, i] = a * math.cos(angle) - b * math.sin(angle)
                out[:, p, i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    x = s["embed.W_E"][tokens]
    standard = config["positional_embedding_type"] == "standard"
    x = x + s["pos_embed.W_pos"][:n] if standard else x
    for i in range(N):
        b = f"blocks.{i}."
        y = ln(x, f"{b}ln1")
        q, k, v = (np.einsum("pd,hde->hpe", y, s[f"{b}attn.W_{c}"]) + s[f"{b}attn.b_{c}"][:, None] for c in "QKV")
        q, k = (q, k) if standard else (rotate(q), rotate(k))
        scores = np.einsum("hqe,hke->hqk", q, k) / (math.sqrt(DH) if config.get("use_attn_scale", True) else 1)
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        pattern = np.exp(scores - scores.max(-1, keepdims=True))
        pattern /= pattern.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,hke,hed->qd", pattern, v, s[f"{b}attn.W_O"]) + s[f"{b}attn.b_O"]
        if not config["attn_only"]:
            pre = ln(x, f"{b}ln2") @ s[f"{b}mlp.W_in"] + s[f"{b}mlp.b_in"]
            if config["act_fn"] == "gelu":
                post = pre * 0.5 * (1 + np.vectorize(math.erf)(pre / math.sqrt(2)))
            else:
                soft = np.exp(pre - pre.max(-1, keepdims=True))
                post = ln(pre * soft / soft.sum(-1, keepdims=True), f"{b}mlp.ln")
            x = x + post @ s[f"{b}mlp.W_out"] + s[f"{b}mlp.b_out"]
    return ln(x, "ln_final") @ s["unembed.W_U"] + s["unembed.b_U"]


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_the_way_back(name, call, tmp_path):
    config = MODELS[name]
    state, tokens = state_of(config), np.random.default_rng(1).integers(0, V, 9)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = load(tmp_path)
    expected = forward(config, state, tokens)
    np.testing.assert_allclose(call(model, jnp.asarray(tokens)[None])[0], expected, atol=5e-5)

    written = load_file(save(model, tmp_path / "again", family="hooked_transformer") / "model.safetensors")
    assert set(written) == {name for name in state if not name.endswith("IGNORE")}
    for name, value in written.items():
        np.testing.assert_array_equal(value, state[name])


def test_what_is_not_built_is_refused(tmp_path):
    save_file(state_of(ATTN_ONLY), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(ATTN_ONLY | {"positional_embedding_type": "shortformer"}))
    with pytest.raises(UserError, match="shortformer"):
        load(tmp_path)
