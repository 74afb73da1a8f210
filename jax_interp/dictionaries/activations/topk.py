"""TopK: the k largest pre-activations of each input, then ReLU (Gao et al. 2024, arXiv:2406.04093, eq. 3)."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.sparse import sparse_matmul, sparse_outer, to_dense


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK:
    """At most `k` latents are on for each input (fewer where the k-th largest pre-activation is not positive).

    `k` is structure: another k is another compilation.
    """

    k: int = dataclasses.field(metadata={"static": True})

    def __call__(self, pre: Float[Array, "*batch feature"]) -> Float[Array, "*batch feature"]:
        """Pre-activations to latents, dense."""
        flat = pre.reshape(-1, pre.shape[-1])
        indices = top_k(jax.lax.stop_gradient(flat), self.k)[1]
        values = jax.nn.relu(jnp.take_along_axis(flat, indices, axis=1, mode="promise_in_bounds"))
        return to_dense(values, indices, pre.shape[-1]).reshape(pre.shape)

    def encode(
        self,
        x: Float[Array, "row d"],
        W_enc: Float[Array, "d feature"],
        b_enc: Float[Array, " feature"],
        b_dec: Float[Array, " d"],
    ) -> tuple[Float[Array, "row k"], Int[Array, "row k"]]:
        """`self((x - b_dec) @ W_enc + b_enc)` as (values in descending order, indices); its backward pass is sparse."""
        return encode_topk(x, W_enc, b_enc, b_dec, self.k)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def encode_topk(
    x: Float[Array, "row d"],
    W_enc: Float[Array, "d feature"],
    b_enc: Float[Array, " feature"],
    b_dec: Float[Array, " d"],
    k: int,
) -> tuple[Float[Array, "row k"], Int[Array, "row k"]]:
    """The k largest of `(x - b_dec) @ W_enc + b_enc` in each row, then ReLU: (values, indices). The gradient reaches
    only the selected latents that are positive, and only they are worked on."""
    return _encode(x, W_enc, b_enc, b_dec, k)


def _encode(x, W_enc, b_enc, b_dec, k):
    values, indices = top_k((x - b_dec[None, :]) @ W_enc + b_enc[None, :], k)
    return jax.nn.relu(values), indices


def _encode_forward(x, W_enc, b_enc, b_dec, k):
    values, indices = _encode(x, W_enc, b_enc, b_dec, k)
    return (values, indices), (x, W_enc, b_dec, values, indices)


def _encode_backward(k, residuals, cotangents):
    x, W_enc, b_dec, values, indices = residuals
    g = jnp.where(values > 0, cotangents[0], jnp.zeros((), values.dtype))
    n_features = W_enc.shape[1]
    g_b_enc = jnp.zeros((n_features,), g.dtype).at[indices].add(g)
    g_W_enc = sparse_outer(g, indices, x - b_dec[None, :], n_features, transpose=True)
    # b_dec is an argument of its own, and not subtracted by the caller, because its gradient is one matrix-vector
    # product; the gradient of x needs the encoder turned round. XLA drops that when nobody asks for it.
    return sparse_matmul(g, indices, W_enc.T), g_W_enc, g_b_enc, -(W_enc @ g_b_enc)


encode_topk.defvjp(_encode_forward, _encode_backward)
