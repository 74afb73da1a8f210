"""TopK: the k largest pre-activations of each input, then ReLU (Gao et al. 2024, arXiv:2406.04093, eq. 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.dictionaries.activations.activation import ACTIVATIONS, SelectiveActivation
from jax_interp.dictionaries.activations.pre import bias_gradient, centre_gradient, subtract_centre
from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.codes import DenseCode, RowCode
from jax_interp.dictionaries.sharding import feature_shards
from jax_interp.dictionaries.sparse.products import sparse_matmul, sparse_outer

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@ACTIVATIONS.register
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK(SelectiveActivation):
    """At most `k` latents are on for each input (fewer where the k-th largest pre-activation is not positive).

    `k` is structure: another k is another compilation. `limit`, a number that may be traced, keeps only so many of the
    k: that is how a sweep over k is one program. `weighted`: the choice is by pre-activation · ‖W_dec,i‖, which a
    rescaling of a latent against its decoder row does not change. `kernels`: on an NVIDIA GPU products with the code
    are kernels that read nothing but its entries (`kernels.py`: for large dictionaries, and not yet timed); on other
    devices, and on a mesh, it changes nothing.
    """

    k: int = dataclasses.field(default=32, metadata={"static": True})
    limit: Float[Array, ""] | None = None
    weighted: bool = dataclasses.field(default=False, metadata={"static": True})
    kernels: bool = dataclasses.field(default=False, metadata={"static": True})

    supports_limit = True
    cross_layer = True

    def encode(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> RowCode | DenseCode:
        norms = row_norms(dictionary.W_dec) if self.weighted else None
        if feature_shards() > 1:
            return encode_masked(dictionary, x, norms, self._least)
        code = encode_selected(lambda pre: top_k(pre, self.k), dictionary, x, norms, self.kernels)
        if self.limit is None:
            return code
        on = jnp.arange(self.k).astype(self.limit.dtype)[None, :] < self.limit
        return dataclasses.replace(code, values=jnp.where(on, code.values, jnp.zeros_like(code.values)))

    def _least(self, score: Float[Array, "row feature"]) -> Float[Array, "row 1"]:
        """The least score that is on in each row."""
        values = top_k(score, self.k)[0]
        if self.limit is None:
            return values[:, -1:]
        return jax.lax.dynamic_slice_in_dim(values, self.limit.astype(jnp.int32) - 1, 1, axis=1)

    def with_unit_rows(self, norms: Float[Array, " feature"]) -> TopK:
        return dataclasses.replace(self, weighted=False)  # the pre-activation is that product then


def encode_masked(
    dictionary: Dictionary, x: Float[Array, "row d"], norms: Array | None, least: Callable[[Array], Array]
) -> DenseCode:
    """The positive pre-activations whose score reaches `least(score)`, dense: how a code is kept on a mesh whose
    devices share the features. Equal scores at the edge are all on."""
    pre = dictionary.linear(x) + dictionary.b_enc[None, :]
    score = jax.lax.stop_gradient(pre if norms is None else pre * norms[None, :])
    on = score >= least(score)
    return DenseCode(jnp.where(on, jax.nn.relu(pre), jnp.zeros_like(pre)), pre)


def row_norms(W: Float[Array, "feature d"]) -> Float[Array, " feature"]:
    """Norms by which latents are compared, constants for the gradient, at least 1e-6."""
    W = jax.lax.stop_gradient(W)
    return jnp.maximum(jnp.sqrt(jnp.sum(W * W, axis=-1)), jnp.asarray(1e-6, W.dtype))


Select = Callable[[Array], tuple[Array, Array]]


def encode_selected(
    select: Select,
    dictionary: Dictionary,
    x: Float[Array, "row d"],
    norms: Float[Array, " feature"] | None = None,
    kernels: bool = False,
) -> RowCode:
    """The positive pre-activations of `dictionary` where `select(pre) -> (values, indices)` says, with a backward pass
    that touches only those. With `norms` it is pre · norms that is selected from."""
    W_enc, b_enc = dictionary.W_enc, dictionary.b_enc
    if norms is not None:
        W_enc, b_enc = W_enc * norms[None, :], b_enc * norms
    centre = dictionary.b_dec if dictionary.centred else None
    entries: Any = _encode_selected(select, kernels, x, W_enc, b_enc, centre)
    values, indices = entries
    return RowCode(values if norms is None else values / norms[indices], indices, kernels)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _encode_selected(
    select: Select,
    kernels: bool,
    x: Float[Array, "row d"],
    W_enc: Float[Array, "d feature"],
    b_enc: Float[Array, " feature"],
    centre: Float[Array, " d"] | None,
) -> tuple[Float[Array, "row k"], Int[Array, "row k"]]:
    values, indices = select(subtract_centre(x, centre) @ W_enc + b_enc[None, :])
    return jax.nn.relu(values), indices


def _forward(select, kernels, x, W_enc, b_enc, centre):
    entries: Any = _encode_selected(select, kernels, x, W_enc, b_enc, centre)
    values, indices = entries
    return (values, indices), (x, W_enc, centre, values, indices)


def _backward(select, kernels, residuals, cotangents):
    x, W_enc, centre, values, indices = residuals
    g = jnp.where(values > 0, cotangents[0], jnp.zeros((), values.dtype))
    n_features = W_enc.shape[1]
    rows = jnp.broadcast_to(jnp.arange(len(x), dtype=indices.dtype)[:, None], indices.shape)
    g_b_enc = bias_gradient(g, rows, indices, len(x), n_features)
    g_W_enc = sparse_outer(g, indices, subtract_centre(x, centre), n_features, transpose=True, kernels=kernels)
    g_x = sparse_matmul(g, indices, W_enc.T, kernels)  # dropped where not asked for
    return g_x, g_W_enc, g_b_enc, centre_gradient(g_b_enc, W_enc, centre)


_encode_selected.defvjp(_forward, _backward)
