"""Path expansion: the logits of an attention-only model as a sum over all paths (Elhage et al. 2021).

With its attention patterns and the scales of its norms held fixed, each head is a linear map. So the logits are a sum
of Π(1 + heads of layer) terms. A term is a path: in each layer it goes through one head, or stays in the stream. Sums
over sets of paths need no list of paths: they are runs of the linear model with some heads scaled or left out.

    expansion = expand(model, tokens)
    expansion.n_paths                               # 13**12 for 12 layers of 12 heads
    expansion.path(["a0.h3", "a1.h2"])              # the logits from this path alone
    expansion.through_heads(metric)                 # for each head, the sum over all paths through it
    expansion.by_length(metric)                     # the sum over all paths with 0, 1, 2, ... heads
    expansion.largest(metric, 10, max_heads=2)      # the paths with the largest terms

Biases are paths that begin in the middle: "b1" is what the biases of layer 1 write. With an MLP the sum is false: a
nonlinear function of a sum is no sum of functions. `expand(..., mlps="constant")` takes the outputs of MLPs as they
are, "m1", and expands what attention does with them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.analysis.norm_at_scale import NormAtScale, norms_after
from jax_interp.analysis.weights import W_O, W_U, W_V, b_O, b_U, b_V, by_layer, decoder
from jax_interp.circuits.metrics import Metric, as_metric
from jax_interp.circuits.paths.linear_layer import LinearLayer
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Model, values_at


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PathExpansion:
    """The linear model that a decoder is on some prompts, with its patterns and scales fixed. `expand` makes it.

    Args:
      start: the stream before the first block: all paths from "input" begin with it.
      layers: the linear maps of the layers, with a leading layer axis, and what each layer writes without an input.
      final: the norm before the unembedding.
      unembed: from the normed stream to logits.
      constant: the part of the logits that comes from the biases of the last norm and of the unembedding.
    """

    start: Float[Array, "prompt pos d_model"]
    layers: LinearLayer
    final: NormAtScale
    unembed: Float[Array, "d_model vocab"]
    constant: Float[Array, " vocab"]

    @property
    def n_layers(self) -> int:
        return self.layers.W_V.shape[0]

    @property
    def n_heads(self) -> int:
        return self.layers.W_V.shape[1]

    @property
    def n_paths(self) -> int:
        """The number of paths from the input: (1 + heads)^layers. Paths that begin at biases or MLPs come on top."""
        return (1 + self.n_heads) ** self.n_layers

    def logits(self, weights: Float[Array, "*prompt layer head"] | None = None) -> Float[Array, "prompt pos vocab"]:
        """The sum over all paths, each multiplied by the weights of its heads.

        Args:
          weights: one number for each head. Zeros and ones choose a set of heads: the result is the sum over all paths
            that use no other. Default: ones, and then the result is the model's logits. Paths from biases and MLPs, and
            the constant, are always included.
        """
        return _logits(self, self._weights(weights))

    def path(self, heads: Sequence[str], start: str = "input") -> Float[Array, "prompt pos vocab"]:
        """The term of one path.

        Args:
          heads: the heads on the path, from early to late: ["a0.h3", "a1.h2"]. An empty list: the direct path.
          start: where the path begins: "input", or "b1", the biases of layer 1 (or "m1", with constant MLPs).

        Raises:
          UserError: there is no such head or start, or the heads are not in the order of the layers.
        """
        known = {f"{kind}{i}": (kind, i) for kind in self.layers.constants for i in range(self.n_layers)}
        if start != "input" and start not in known:
            raise UserError(f"no path begins at {start!r}: choose from input, {', '.join(known)}")
        y = self.start if start == "input" else self.layers.constants[known[start][0]][known[start][1]]
        last = -1 if start == "input" else known[start][1]
        for name in heads:
            found = re.fullmatch(r"a(\d+)\.h(\d+)", name)
            layer, head = (int(found[1]), int(found[2])) if found else (self.n_layers, 0)
            if layer >= self.n_layers or head >= self.n_heads or layer <= last:
                raise UserError(
                    f"{name!r} is no next head of a path: give heads a0.h0 to "
                    f"a{self.n_layers - 1}.h{self.n_heads - 1}, each in a later layer than the one before"
                )
            y, last = jax.jit(LinearLayer.writes)(self.layers.at(layer), y)[head], layer
        return self.final.linear(y) @ self.unembed

    def by_length(self, metric: Metric | Callable[[Any], Any]) -> Labelled:
        """The sum over all paths with 0, 1, ..., n_layers heads.

        Args:
          metric: a linear function of the logits, such as `LogitDifference`.

        Returns:
          [heads, prompt]. The sum over `heads`, plus what the constant gives, is the metric of the model.

        Raises:
          UserError: the metric is not linear.
        """
        values = np.asarray(_by_length(self, self._direction(metric)))
        return Labelled(values, {"heads": range(self.n_layers + 1), "prompt": range(values.shape[1])}, "metric")

    def through_heads(self, metric: Metric | Callable[[Any], Any]) -> Labelled:
        """For each head, the sum over all paths that go through it. One backward pass gives all of them.

        This is the direct effect of the head and its effects through all later heads, with all patterns fixed.

        Args:
          metric: a linear function of the logits.

        Returns:
          [layer, head, prompt].

        Raises:
          UserError: the metric is not linear.
        """
        values = np.moveaxis(np.asarray(_through_heads(self, self._direction(metric))), 0, -1)
        axes = {"layer": range(self.n_layers), "head": range(self.n_heads), "prompt": range(values.shape[2])}
        return Labelled(values, axes, "metric")

    def largest(
        self, metric: Metric | Callable[[Any], Any], k: int = 10, *, max_heads: int | None = None, limit: int = 2**28
    ) -> Labelled:
        """The paths with the largest terms, by the absolute mean over prompts.

        All terms are computed, none is estimated: each is the inner product of one beginning of a path, carried forward
        to the middle layer, and one end, carried back from the logits.

        Args:
          metric: a linear function of the logits.
          k: how many paths to return.
          max_heads: leave out paths with more heads. Default: no limit.
          limit: the largest number of floats to hold in memory.

        Returns:
          [path, prompt], with labels such as "input -> a0.h3 -> a1.h2", the largest first.

        Raises:
          UserError: the metric is not linear, or there are too many paths for `limit`.
        """
        if k < 1 or (max_heads is not None and max_heads < 0):
            raise UserError(f"k={k}, max_heads={max_heads}: give k of at least 1, and max_heads of at least 0")
        most = self.n_layers if max_heads is None else min(max_heads, self.n_layers)
        middle = self.n_layers // 2
        n_begin, n_end = (self._count(layers, most) for layers in (middle, self.n_layers - middle))
        n_begin += middle * len(self.layers.constants) * self._count(max(middle - 1, 0), most)
        floats = (n_begin + n_end) * self.start.size + n_begin * n_end * self.start.shape[0]
        if floats > limit:
            raise UserError(
                f"{n_begin} beginnings and {n_end} ends of paths need {floats:.1e} floats, more than "
                f"limit={limit:.1e}: give max_heads, fewer prompts, or a larger limit"
            )
        names, values = self._terms(self._direction(metric), middle, most)
        order = np.argsort(-np.abs(values.mean(axis=1)), kind="stable")[:k]
        labels = [" -> ".join(names[i]) for i in order.tolist()]
        return Labelled(np.asarray(values)[order], {"path": labels, "prompt": range(values.shape[1])}, "metric")

    def _count(self, layers: int, most: int) -> int:
        return sum(math.comb(layers, n) * self.n_heads**n for n in range(min(layers, most) + 1))

    def _terms(
        self, direction: Array, middle: int, most: int
    ) -> tuple[list[tuple[str, ...]], Float[np.ndarray, "path prompt"]]:
        """The name and the term of every path with at most `most` heads."""
        heads = [[f"a{i}.h{h}" for h in range(self.n_heads)] for i in range(self.n_layers)]
        begins, y = [("input",)], self.start[None]
        for i in range(middle):
            layer = self.layers.at(i)
            begins, y = _longer(begins, y, heads[i], partial(_forward, layer), most, lambda path, head: (*path, head))
            begins += [(f"{kind}{i}",) for kind in layer.constants]
            y = jnp.concatenate([y, *(value[None] for value in layer.constants.values())])
        ends: list[tuple[str, ...]] = [()]
        v, names, values = direction[None], [], []
        for i in reversed(range(middle, self.n_layers)):
            layer = self.layers.at(i)
            for kind, value in layer.constants.items():
                names += [(f"{kind}{i}", *end) for end in ends]
                values.append(jnp.einsum("nptd,ptd->np", v, value))
            ends, v = _longer(ends, v, heads[i], partial(_back, layer), most, lambda path, head: (head, *path))
        product = np.asarray(jnp.einsum("nptd,mptd->nmp", y, v))
        lengths = [len(end) for end in ends]
        short = [
            (n, m) for n, b in enumerate(begins) for m, length in enumerate(lengths) if len(b) - 1 + length <= most
        ]
        rows, columns = np.array(short).T
        names += [(*begins[n], *ends[m]) for n, m in short]
        return names, np.concatenate([*map(np.asarray, values), product[rows, columns]])

    def _weights(self, weights: Any) -> Float[Array, "prompt layer head"]:
        shape = (self.start.shape[0], self.n_layers, self.n_heads)
        weights = jnp.ones(shape[1:]) if weights is None else jnp.asarray(weights)
        if weights.shape not in (shape, shape[1:]):
            raise UserError(f"weights have shape {shape[1:]} or {shape}, got {weights.shape}")
        weights = weights.astype(self.start.dtype)
        return jnp.broadcast_to(weights if weights.ndim == 3 else weights[None], shape)

    def _direction(self, metric: Metric | Callable[[Any], Any]) -> Float[Array, "prompt pos d_model"]:
        """What an inner product with the final stream adds to the metric."""
        return _pulled_back(self, linear_part(as_metric(metric), self.logits()))


def expand(
    model: Model,
    tokens: Int[Array, "prompt pos"],
    *,
    mask: Bool[Array, "prompt pos"] | None = None,
    mlps: Literal["refuse", "constant"] = "refuse",
    tolerance: float = 1e-3,
) -> PathExpansion:
    """Expand an attention-only model into paths, with the patterns and the scales of norms that it has on some prompts.

    Args:
      model: a decoder, with or without surgery.
      tokens: the prompts.
      mask: True for real tokens, False for padding.
      mlps: refuse (default): a model with MLPs is refused. constant: their outputs are constants, "m0", "m1", ...;
        what the MLPs themselves read is then not expanded.
      tolerance: the largest accepted difference between the sum over all paths and the model's logits, as a part of the
        largest logit.

    Returns:
      The expansion.

    Raises:
      UserError: the model has MLPs, or a softcap on its logits; or the sum is not the model's logits, because
        something in this model is not linear: an edit, or a part that was replaced.
    """
    config = decoder(model).config
    if mlps not in ("refuse", "constant"):
        raise UserError(f"mlps={mlps!r}: choose refuse or constant")
    if config.d_mlp and mlps == "refuse":
        raise UserError(
            "this model has MLPs. They are not linear, so its logits are no sum over paths: use "
            "expand(..., mlps='constant') to expand attention only, or patch_paths, which makes no sum"
        )
    if config.logit_softcap:
        raise UserError("this model has a softcap on its logits, so they are no sum over paths")
    expansion, logits = jax.jit(_expanded)(model, tokens, mask)
    real = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask, bool)
    found, wanted = (np.asarray(x, np.float64)[real] for x in (expansion.logits(), logits))
    error, size = np.abs(found - wanted).max(), np.abs(wanted).max()
    if not error <= tolerance * size:
        raise UserError(
            f"the sum over all paths differs from the model's logits by {error:.3g} (the largest logit is {size:.3g}): "
            "the model has an edit or a part that is no linear map with fixed patterns. In 16 bits, give a larger "
            "tolerance or a float32 model"
        )
    return expansion


def linear_part(metric: Metric, logits: Float[Array, "prompt pos vocab"]) -> Float[Array, "prompt pos vocab"]:
    """The gradient of a metric. Raises `UserError` if the metric is not a linear function of the logits."""
    gradient = jax.grad(lambda x: jnp.sum(metric(x)))(logits)
    value, twice = metric(logits), metric(2 * logits)
    product = jnp.einsum("ptv,ptv->p", gradient, logits)
    size = 1e-3 * float(jnp.max(jnp.abs(logits)))
    if not bool(jnp.all(jnp.abs(value - product) <= size) & jnp.all(jnp.abs(twice - 2 * product) <= size)):
        raise UserError(
            f"{type(metric).__name__} is not a linear function of the logits, so its value is no sum over paths. Use "
            "LogitDifference"
        )
    return gradient


def _expanded(model: Model, tokens: Array, mask: Array | None) -> tuple[PathExpansion, Array]:
    inner = decoder(model)
    names = {
        "blocks.0.resid_pre": True,
        "blocks.*.attn.pattern": True,
        "logits": True,
        "blocks.*.ln1.scale": by_layer(model, lambda block: block.ln1) is not None,
        "blocks.*.ln1_post.scale": by_layer(model, lambda block: block.ln1_post) is not None,
        "ln_final.scale": inner.ln_final is not None,
        "blocks.*.mlp_out": inner.config.d_mlp > 0,
    }
    acts = values_at(model, [name for name, exists in names.items() if exists])(tokens, mask=mask)
    scale_of = lambda name: upcast(acts[name]) if names[name] else None
    ln = NormAtScale.of(by_layer(model, lambda block: block.ln1), scale_of("blocks.*.ln1.scale"))
    post = norms_after(model, acts, "ln1_post", inner.config.n_layers, None)
    layers = LinearLayer(upcast(acts["blocks.*.attn.pattern"]), upcast(W_V(model)), upcast(W_O(model)), ln, post, {})
    biases = jax.vmap(LinearLayer.bias)(layers, upcast(b_V(model)), upcast(b_O(model)))
    constants = {"b": biases} | ({"m": upcast(acts["blocks.*.mlp_out"])} if inner.config.d_mlp else {})
    final = NormAtScale.of(inner.ln_final, scale_of("ln_final.scale"))
    scale = jnp.asarray(inner.config.logit_scale, biases.dtype)
    unembed, constant = upcast(W_U(model)) * scale, upcast(b_U(model)) * scale
    constant = constant if final.bias is None else constant + final.bias @ unembed
    layers = dataclasses.replace(layers, constants=constants)
    return PathExpansion(upcast(acts["blocks.0.resid_pre"]), layers, final, unembed, constant), acts["logits"]


@jax.jit
def _logits(expansion: PathExpansion, weights: Float[Array, "prompt layer head"]) -> Array:
    y = _final_stream(expansion, weights)
    return expansion.final.linear(y) @ expansion.unembed + expansion.constant[None, None]


def _final_stream(expansion: PathExpansion, weights: Float[Array, "prompt layer head"]) -> Array:
    def step(x: Array, layer_and_weights: tuple[LinearLayer, Array]) -> tuple[Array, None]:
        layer, w = layer_and_weights
        return x + jnp.einsum("hptd,ph->ptd", layer.writes(x), w) + sum(layer.constants.values()), None

    return jax.lax.scan(step, expansion.start, (expansion.layers, jnp.moveaxis(weights, 1, 0)))[0]


@jax.jit
def _by_length(expansion: PathExpansion, direction: Array) -> Float[Array, "heads prompt"]:
    """One stream for each number of heads: a head moves its input from stream n to stream n + 1."""

    def step(streams: Array, layer: LinearLayer) -> tuple[Array, None]:
        written = jax.lax.map(lambda y: jnp.sum(layer.writes(y), axis=0), streams)
        streams = streams.at[1:].add(written[:-1])
        return streams.at[0].add(sum(layer.constants.values())), None

    streams = jnp.zeros((expansion.n_layers + 1, *expansion.start.shape), expansion.start.dtype)
    streams, _ = jax.lax.scan(step, streams.at[0].set(expansion.start), expansion.layers)
    return jnp.einsum("nptd,ptd->np", streams, direction)


@jax.jit
def _through_heads(expansion: PathExpansion, direction: Array) -> Float[Array, "prompt layer head"]:
    ones = jnp.ones((expansion.start.shape[0], expansion.n_layers, expansion.n_heads), expansion.start.dtype)
    return jax.grad(lambda weights: jnp.sum(_final_stream(expansion, weights) * direction))(ones)


@jax.jit
def _pulled_back(expansion: PathExpansion, gradient: Float[Array, "prompt pos vocab"]) -> Array:
    return expansion.final.transpose(gradient.astype(expansion.start.dtype) @ expansion.unembed.T)


@jax.jit
def _forward(layer: LinearLayer, y: Float[Array, "path prompt pos d_model"]) -> Array:
    return jax.lax.map(layer.writes, y)


@jax.jit
def _back(layer: LinearLayer, v: Float[Array, "path prompt pos d_model"]) -> Array:
    return jax.lax.map(layer.reads, v)


def _longer(
    paths: list[tuple[str, ...]],
    vectors: Float[Array, "path prompt pos d_model"],
    heads: list[str],
    apply: Callable[[Array], Float[Array, "path head prompt pos d_model"]],
    most: int,
    join: Callable[[tuple[str, ...], str], tuple[str, ...]],
) -> tuple[list[tuple[str, ...]], Float[Array, "path prompt pos d_model"]]:
    """The paths, and all of them with one more head if they then have at most `most`."""
    n_heads = lambda path: sum(name.startswith("a") for name in path)
    short = [i for i, path in enumerate(paths) if n_heads(path) < most]
    if not short:
        return paths, vectors
    more = apply(vectors[np.array(short)])
    longer = [join(paths[i], head) for i in short for head in heads]
    return [*paths, *longer], jnp.concatenate([vectors, more.reshape(-1, *vectors.shape[1:])])
