"""The sparse autoencoder: reads one value and writes the same one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.dictionaries import sparse
from jax_interp.dictionaries.activations.topk import TopK


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SAE:
    """z = activation((x - b_dec) W_enc + b_enc),   x̂ = z W_dec + b_dec.

    A row of `W_dec` is a feature's direction. `encode` and `decode` take any leading axes and compute in the
    dictionary's dtype; `__call__` gives the reconstruction in the dtype of `x`. It is what `Splice` takes:

        edit(model, at("blocks.2.resid_post", Splice(sae)))
    """

    W_enc: Float[Array, "d feature"]
    b_enc: Float[Array, " feature"]
    W_dec: Float[Array, "feature d"]
    b_dec: Float[Array, " d"]
    activation: Any

    @property
    def n_features(self) -> int:
        return self.W_dec.shape[-2]

    @property
    def d(self) -> int:
        return self.W_dec.shape[-1]

    def pre(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch feature"]:
        """Pre-activations: what the activation chooses from."""
        centred = _minus(x.astype(self.W_enc.dtype), self.b_dec)
        return _plus(centred @ self.W_enc, self.b_enc)

    def encode(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch feature"]:
        """The latents, dense."""
        return self.activation(self.pre(x))

    def decode(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d"]:
        return _plus(z.astype(self.W_dec.dtype) @ self.W_dec, self.b_dec)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return self.decode_sparse(*self.encode_sparse(x)).astype(x.dtype)

    def encode_sparse(self, x: Float[Array, "*batch d"]) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
        """The latents that are on, as (values, indices): the same code without its zeros."""
        flat = x.astype(self.W_enc.dtype).reshape(-1, x.shape[-1])
        values, indices = self.activation.encode(flat, self.W_enc, self.b_enc, self.b_dec)
        return values.reshape(*x.shape[:-1], -1), indices.reshape(*x.shape[:-1], -1)

    def decode_sparse(
        self, values: Float[Array, "*batch k"], indices: Int[Array, "*batch k"]
    ) -> Float[Array, "*batch d"]:
        k = values.shape[-1]
        x_hat = sparse.decode(values.reshape(-1, k), indices.reshape(-1, k), self.W_dec)
        return _plus(x_hat, self.b_dec).reshape(*values.shape[:-1], self.d)


def _plus(x: Array, bias: Array) -> Array:
    return x + jnp.broadcast_to(bias, x.shape)  # spelt out: the tests forbid silent rank promotion


def _minus(x: Array, bias: Array) -> Array:
    return x - jnp.broadcast_to(bias, x.shape)


def init_sae(
    key: Key[Array, ""], d: int, n_features: int, k: int, b_dec: Float[Array, " d"] | None = None, dtype=jnp.float32
) -> SAE:
    """Decoder rows uniform on the unit sphere, the encoder the decoder's transpose, `b_enc` zero, `b_dec` as given (the
    trainer gives the mean of its first activations) or zero: the initialisation of Gao et al. 2024, appendix A.

    ValueError where k does not fit n_features.
    """
    if not 0 < k <= n_features:
        raise ValueError(f"k = {k} latents of {n_features} features: k must be between 1 and the number of features")
    rows = jax.random.normal(key, (n_features, d), dtype)
    W_dec = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    b_dec = jnp.zeros((d,), dtype) if b_dec is None else b_dec.astype(dtype)
    return SAE(W_enc=W_dec.T, b_enc=jnp.zeros((n_features,), dtype), W_dec=W_dec, b_dec=b_dec, activation=TopK(k))
