"""A GPT-2-like transformer in NumPy and float64, whose values can be replaced by name: a reference without autodiff."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jax_interp.core.leaves import flatten

Hook = Callable[[str, int, np.ndarray], np.ndarray]


def keep(name: str, layer: int, value: np.ndarray) -> np.ndarray:
    return value


class NumpyTransformer:
    """The weights of an unstacked model with LayerNorm, learned positions, biases and GELU (tanh)."""

    def __init__(self, model, heads: int, layers: int):
        self.w = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(model).items()}
        self.heads, self.layers = heads, layers

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def __call__(self, tokens: np.ndarray, hook: Hook = keep) -> np.ndarray:
        """Logits [prompt, pos, vocab]. `hook(name, layer, value)` replaces values by name: q, k, v and z
        [prompt, pos, head, d_head], patterns [prompt, head, query, key]."""
        n, length = tokens.shape
        x = hook("embed", -1, self.w["embed.weight"][tokens]) + self.w["pos_embed.weight"][:length]
        causal = np.tril(np.ones((length, length), bool))
        for layer in range(self.layers):
            here = f"blocks.{layer}"
            inner = self.norm(x, f"{here}.ln1")
            q, k, v = (
                hook(s, layer, self.linear(inner, f"{here}.attn.{s}").reshape(n, length, self.heads, -1)) for s in "qkv"
            )
            scores = np.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
            pattern = hook("pattern", layer, softmax(hook("scores", layer, np.where(causal, scores, -np.inf))))
            z = hook("z", layer, np.einsum("bhqk,bkhd->bqhd", pattern, v))
            x = x + hook("attn_out", layer, self.linear(z.reshape(n, length, -1), f"{here}.attn.o"))
            inner = self.linear(self.norm(x, f"{here}.ln2"), f"{here}.mlp.up")
            post = hook("post", layer, gelu(inner))
            x = x + hook("mlp_out", layer, self.linear(post, f"{here}.mlp.down"))
        x = self.norm(x, "ln_final")
        return x @ (self.w["unembed.weight"] if "unembed.weight" in self.w else self.w["embed.weight"].T)

    def values(self, tokens: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
        found = {}

        def note(name, layer, value):
            found[name, layer] = value
            return value

        self(tokens, note)
        return found


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
