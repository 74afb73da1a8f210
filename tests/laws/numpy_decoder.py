"""A decoder in NumPy float64, for unpadded texts: what padded, half-precision and cached runs with edits must give.

It is written from the definition of the architecture (RMSNorm, rotary positions, grouped keys, gated MLP) and shares no
code with the package. Every text of a batch runs in step with the others, so an edit may compare them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Texts = list[np.ndarray]
"""One array for each text, without a batch axis."""
Name = Callable[[str, Texts], Texts]


def weights_of(model) -> dict[str, np.ndarray]:
    """The weights of an unrolled decoder by the path of their module, in float64."""
    found = {"embed": model.embed.weight, "ln_final": model.ln_final.weight}
    for i, block in enumerate(model.blocks):
        parts = {"ln1": block.ln1, "ln1_post": block.ln1_post, "ln2": block.ln2, "ln2_post": block.ln2_post}
        parts |= {f"attn.{name}": getattr(block.attn, name) for name in ("q", "k", "v", "o", "q_norm", "k_norm")}
        parts |= {f"mlp.{name}": getattr(block.mlp, name) for name in ("up", "gate", "down")}
        found |= {f"blocks.{i}.{name}": part.weight for name, part in parts.items() if part is not None}
    return {name: np.asarray(weight[...]).astype(np.float64) for name, weight in found.items()}


def run(weights: dict[str, np.ndarray], config, texts: Texts, name: Name) -> Texts:
    """The logits of every text. `name(address, values)` sees each named value and returns what replaces it."""
    x = name("embed", [weights["embed"][text] for text in texts])
    for layer in range(config.n_layers):
        x = _block(weights, config, f"blocks.{layer}.", x, name)
    x = _norm(weights, config, "ln_final", x, name)
    return name("logits", [row @ weights["embed"].T for row in x])


def _block(weights, config, block: str, x: Texts, name: Name) -> Texts:
    around = config.norm_places == "around"
    x = name(f"{block}resid_pre", x)
    out = _attention(weights, config, f"{block}attn.", _norm(weights, config, f"{block}ln1", x, name), name)
    out = _norm(weights, config, f"{block}ln1_post", out, name) if around else out
    x = name(f"{block}resid_mid", _sum(x, name(f"{block}attn_out", out)))
    out = _mlp(weights, f"{block}mlp.", _norm(weights, config, f"{block}ln2", x, name), name)
    out = _norm(weights, config, f"{block}ln2_post", out, name) if around else out
    return name(f"{block}resid_post", _sum(x, name(f"{block}mlp_out", out)))


def _attention(weights, config, attn: str, x: Texts, name: Name) -> Texts:
    heads = lambda part: [(row @ weights[attn + part]).reshape(len(row), -1, config.d_head) for row in x]
    q, k, v = (name(attn + part, heads(part)) for part in "qkv")
    if config.qk_norm == "head":
        q, k = _norm(weights, config, f"{attn}q_norm", q, name), _norm(weights, config, f"{attn}k_norm", k, name)
    q = name(f"{attn}rot_q", [_rotated(row, config.rope.base) for row in q])
    k = name(f"{attn}rot_k", [_rotated(row, config.rope.base) for row in k])
    shared = config.n_heads // config.n_kv_heads
    k, v = ([np.repeat(row, shared, axis=1) for row in rows] for rows in (k, v))
    causal = [np.tril(np.ones((len(row), len(row)), bool)) for row in q]
    scores = [np.einsum("phd,khd->hpk", a, b) / config.d_head**0.5 for a, b in zip(q, k, strict=True)]
    scores = name(f"{attn}attn_scores", _where(causal, scores, -1e30))
    pattern = name(f"{attn}pattern", [_softmax(row) for row in _where(causal, scores, -1e30)])
    pattern = _where(causal, pattern, 0.0)
    z = name(f"{attn}z", [np.einsum("hpk,khd->phd", a, b) for a, b in zip(pattern, v, strict=True)])
    by_head = weights[f"{attn}o"].reshape(config.n_heads, config.d_head, -1)
    result = name(f"{attn}result", [np.einsum("phd,hde->phe", row, by_head) for row in z])
    return [row.sum(1) for row in result]


def _mlp(weights, mlp: str, x: Texts, name: Name) -> Texts:
    pre = name(f"{mlp}pre", [row @ weights[f"{mlp}gate"] for row in x])
    linear = name(f"{mlp}pre_linear", [row @ weights[f"{mlp}up"] for row in x])
    post = [a / (1 + np.exp(-a)) * b for a, b in zip(pre, linear, strict=True)]
    return [row @ weights[f"{mlp}down"] for row in name(f"{mlp}post", post)]


def _norm(weights, config, norm: str, x: Texts, name: Name) -> Texts:
    scale = name(f"{norm}.scale", [np.sqrt((row**2).mean(-1, keepdims=True) + config.norm_eps) for row in x])
    normed = name(f"{norm}.normalized", [row / by for row, by in zip(x, scale, strict=True)])
    return [row * weights[norm] for row in normed]


def _rotated(x: np.ndarray, base: float) -> np.ndarray:
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None, None] * base ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    parts = first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)
    return np.concatenate(parts, axis=-1)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _sum(x: Texts, y: Texts) -> Texts:
    return [a + b for a, b in zip(x, y, strict=True)]


def _where(masks: Texts, x: Texts, other: float) -> Texts:
    return [np.where(mask, row, other) for mask, row in zip(masks, x, strict=True)]
