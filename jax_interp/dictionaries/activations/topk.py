"""TopK: the k largest pre-activations of each input, then ReLU (Gao et al. 2024, arXiv:2406.04093, eq. 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations.activation import ACTIVATIONS, SelectiveActivation
from jax_interp.dictionaries.activations.pre import bias_gradient, centre_gradient, subtract_centre
from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.codes import DenseCode, RowCode
from jax_interp.dictionaries.sharding import feature_shards
from jax_interp.dictionaries.sparse.products import sparse_matmul, sparse_outer

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@ACTIVATIONS.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK(SelectiveActivation):
    """At most `k` latents are on for each input. Fewer are on if the k-th largest pre-activation is not positive."""

    k: int = dataclasses.field(default=32, metadata={"static": True})
    """Number of latents. It is static: each k is a separate compiled program."""
    limit: Float[Array, ""] | None = None
    """A number up to k that is used instead of k. It may be traced, so a sweep over k is one compiled program."""
    weighted: bool = dataclasses.field(default=False, metadata={"static": True})
    """Select latents by pre-activation · ‖W_dec,i‖. The selection then does not change if a latent is multiplied by a
    number and its decoder row is divided by it."""
    kernels: bool = dataclasses.field(default=False, metadata={"static": True})
    """On an NVIDIA GPU, use kernels that read only the entries of the code (sparse/kernels.py). They are for large
    dictionaries, and are not yet timed. The field has no effect on other devices or on a mesh."""

    supports_limit = True
    cross_layer = True

    def encode(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> RowCode | DenseCode:
        norms = row_norms(dictionary.W_dec) if self.weighted else None
        if feature_shards() > 1:
            return encode_masked(dictionary, x, norms, self._least, self.signed)
        code = encode_selected(lambda score: self._select(score), dictionary, x, norms, self.kernels, self.signed)
        if self.limit is None:
            return code
        on = jnp.arange(self.k).astype(self.limit.dtype)[None, :] < self.limit
        return dataclasses.replace(code, values=jnp.where(on, code.values, jnp.zeros_like(code.values)))

    def _select(self, score: Float[Array, "row feature"]) -> tuple[Float[Array, "row k"], Int[Array, "row k"]]:
        return top_k(score, self.k)

    def _least(self, score: Float[Array, "row feature"]) -> Float[Array, "row 1"]:
        """The smallest selected score of each row."""
        values = top_k(score, self.k)[0]
        if self.limit is None:
            return values[:, -1:]
        return jax.lax.dynamic_slice_in_dim(values, self.limit.astype(jnp.int32) - 1, 1, axis=1)

    def with_unit_rows(self, norms: Float[Array, " feature"]) -> TopK:
        return dataclasses.replace(self, weighted=False)  # pre-activations now equal the products with the norms


def encode_masked(
    dictionary: Dictionary,
    x: Float[Array, "row d"],
    norms: Array | None,
    least: Callable[[Array], Array],
    signed: bool = False,
) -> DenseCode:
    """A dense code of the positive pre-activations whose score is at least `least(score)`.

    Codes have this form on a mesh that shards features. All scores equal to the least score are on.

    Args:
      dictionary: the dictionary.
      x: the input.
      norms: the score is the pre-activation times `norms`. None: the score is the pre-activation.
      least: a function from scores [row, feature] to the smallest score that is on, [row, 1].
      signed: the score is the absolute value, and negative pre-activations are kept too.
    """
    pre = dictionary.linear(x) + dictionary.b_enc[None, :]
    score = jax.lax.stop_gradient(pre if norms is None else pre * norms[None, :])
    score = jnp.abs(score) if signed else score
    on = score >= least(score)
    return DenseCode(jnp.where(on, pre if signed else jax.nn.relu(pre), jnp.zeros_like(pre)), pre)


def row_norms(W: Float[Array, "feature d"]) -> Float[Array, " feature"]:
    """The norm of each decoder row, at least 1e-6. No gradient flows through it."""
    W = jax.lax.stop_gradient(W)
    return jnp.maximum(jnp.sqrt(jnp.sum(W * W, axis=-1)), jnp.asarray(1e-6, W.dtype))


Select = Callable[[Array], tuple[Array, Array]]


def encode_selected(
    select: Select,
    dictionary: Dictionary,
    x: Float[Array, "row d"],
    norms: Float[Array, " feature"] | None = None,
    kernels: bool = False,
    signed: bool = False,
) -> RowCode:
    """A code of the positive pre-activations that `select` chooses. The backward pass touches only these.

    Args:
      select: a function from scores [row, feature] to the (values, indices) of the chosen scores, each [row, k].
      dictionary: the dictionary.
      x: the input.
      norms: the score is the pre-activation times `norms`. None: the score is the pre-activation.
      kernels: as in `TopK`.
      signed: keep chosen pre-activations that are negative. Otherwise their latents are 0.
    """
    W_enc, b_enc = dictionary.W_enc, dictionary.b_enc
    if norms is not None:
        W_enc, b_enc = W_enc * norms[None, :], b_enc * norms
    centre = dictionary.b_dec if dictionary.centred else None
    entries: Any = _encode_selected(select, kernels, signed, x, W_enc, b_enc, centre)
    values, indices = entries
    return RowCode(values if norms is None else values / norms[indices], indices, kernels)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _encode_selected(
    select: Select,
    kernels: bool,
    signed: bool,
    x: Float[Array, "row d"],
    W_enc: Float[Array, "d feature"],
    b_enc: Float[Array, " feature"],
    centre: Float[Array, " d"] | None,
) -> tuple[Float[Array, "row k"], Int[Array, "row k"]]:
    values, indices = select(subtract_centre(x, centre) @ W_enc + b_enc[None, :])
    return values if signed else jax.nn.relu(values), indices


def _forward(select, kernels, signed, x, W_enc, b_enc, centre):
    entries: Any = _encode_selected(select, kernels, signed, x, W_enc, b_enc, centre)
    values, indices = entries
    return (values, indices), (x, W_enc, centre, values, indices)


def _backward(select, kernels, signed, residuals, cotangents):
    x, W_enc, centre, values, indices = residuals
    g = jnp.where(values != 0, cotangents[0], jnp.zeros((), values.dtype))
    n_features = W_enc.shape[1]
    rows = jnp.broadcast_to(jnp.arange(len(x), dtype=indices.dtype)[:, None], indices.shape)
    g_b_enc = bias_gradient(g, rows, indices, len(x), n_features)
    g_W_enc = sparse_outer(g, indices, subtract_centre(x, centre), n_features, transpose=True, kernels=kernels)
    g_x = sparse_matmul(g, indices, W_enc.T, kernels)  # XLA removes this if it is not used
    return g_x, g_W_enc, g_b_enc, centre_gradient(g_b_enc, W_enc, centre)


_encode_selected.defvjp(_forward, _backward)
