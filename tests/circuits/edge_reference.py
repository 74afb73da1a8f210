"""A transformer in plain float64 NumPy-style code, written as a graph: every input is a sum over sources.

`forward(weights, tokens, extra)` computes the input of each target as Σ sources + biases + extra(target, sources). It
shares no code with the package. The names of sources and targets are those of the graph.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def weights_of(model):
    """The weights of a GPT-2-like decoder as float64 arrays, layer by layer."""
    (stack,) = model.blocks
    get = lambda leaf: np.asarray(leaf[...], np.float64)
    b = stack.block
    linear = lambda layer: (get(layer.weight), get(layer.bias))
    names = {"q": b.attn.q, "k": b.attn.k, "v": b.attn.v, "o": b.attn.o, "up": b.mlp.up, "down": b.mlp.down}
    names |= {"ln1": b.ln1, "ln2": b.ln2}
    return {
        "embed": get(model.embed.weight),
        "pos": get(model.pos_embed.weight),
        "ln_final": linear(model.ln_final),
        "n_heads": model.config.n_heads,
        "layers": [{name: tuple(w[i] for w in linear(m)) for name, m in names.items()} for i in range(stack.depth)],
    }


def norm(x, weight_and_bias, eps=1e-5):
    weight, bias = weight_and_bias
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight + bias


def gelu_tanh(x):
    return 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def forward(w, tokens, extra=lambda target, sources: 0.0, mask=None, value=lambda source, computed: computed):
    """(logits, sources). `mask` is True for real tokens; `value(source, computed)` can replace a source."""
    tokens = np.asarray(tokens)
    n, d_head = tokens.shape[1], w["embed"].shape[1] // w["n_heads"]
    real = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask)
    at = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    sources = {"input": value("input", w["embed"][tokens] + w["pos"][at])}
    bias = 0.0
    allowed = np.tril(np.ones((n, n), bool))[None] & real[:, None, :]
    read = lambda target: sum(sources.values()) + bias + extra(target, sources)
    for i, layer in enumerate(w["layers"]):
        found = {}
        for h in range(w["n_heads"]):
            cut = slice(h * d_head, (h + 1) * d_head)
            q, k, v = (
                norm(read(f"a{i}.h{h}<{name}>"), layer["ln1"]) @ layer[name][0][:, cut] + layer[name][1][cut]
                for name in "qkv"
            )
            scores = jnp.einsum("bqd,bkd->bqk", q, k) / np.sqrt(d_head)
            scores = jnp.where(allowed, scores, -1e30)
            pattern = jnp.exp(scores - scores.max(-1, keepdims=True))
            pattern = pattern / pattern.sum(-1, keepdims=True)
            found[f"a{i}.h{h}"] = value(f"a{i}.h{h}", pattern @ v @ layer["o"][0][cut])
        sources |= found
        bias = bias + layer["o"][1]
        hidden = gelu_tanh(norm(read(f"m{i}"), layer["ln2"]) @ layer["up"][0] + layer["up"][1])
        sources[f"m{i}"] = value(f"m{i}", hidden @ layer["down"][0] + layer["down"][1])
    return norm(read("logits"), w["ln_final"]) @ w["embed"].T, sources


def circuit_logits(w, tokens, graph, edges, ablated, mask=None):
    """The logits of the run in which each edge outside the circuit carries the ablated value of its source."""
    row, column = {n: i for i, n in enumerate(graph.target_names)}, {n: i for i, n in enumerate(graph.source_names)}

    def extra(target, sources):
        return sum((1 - edges[row[target], column[s]]) * (ablated[s] - value) for s, value in sources.items())

    return forward(w, tokens, extra, mask)[0]


def input_gradients(w, tokens, graph, metric):
    """A compiled `f(values, use)`: d(Σ metric) / d(input of each target), [target, batch, pos, d].

    It is the gradient with respect to a zero that is added to each input. Source `s` is `values[s]` where `use[s]`.
    """
    column = {name: i for i, name in enumerate(graph.source_names)}
    row = {name: i for i, name in enumerate(graph.target_names)}

    def gradients(values, use):
        def total(eps):
            replaced = lambda s, computed: jnp.where(use[column[s]], values[column[s]], computed)
            logits, _ = forward(w, tokens, lambda target, _: eps[row[target]], value=replaced)
            return metric(logits).sum()

        return jax.grad(total)(jnp.zeros((len(row), *values.shape[1:])))

    return jax.jit(gradients)
