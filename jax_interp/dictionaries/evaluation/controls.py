"""Controls: dictionaries to compare a trained dictionary with. `evaluate` accepts them like any dictionary.

    random_like(key, sae)                    a copy of a dictionary with random directions
    random_dictionary(key, d, m, k)          an untrained TopK dictionary
    refit(dictionary, rows)                  a given encoder, with the best decoder for its codes
    principal_components(rows, k)            the best rank-k reconstruction
    neurons(d, k)                            the k largest coordinates of each input
    oracle(directions, bias, threshold)      the true features of a synthetic world
    downstream.Identity                      the dictionary that changes nothing

`refit` of a random dictionary is the "frozen random encoder" of Korznikov et al. 2026 (arXiv:2602.14111). On several
benchmarks its figures are close to those of trained dictionaries, so report them beside your own.

`rows` is an iterable of [row, d] arrays, which is read once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.optimizers import unit_rows
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations import Jump, TopK
from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.evaluation.batch_sums import sum_batches
from jax_interp.dictionaries.forms import Dictionary, init_sae
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, SparseCoder, as_sparse_coder

Rows = Iterable[Float[Array, "row d"]]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Basis(SparseCoder):
    """Orthonormal directions as a dictionary: z = (x - b_dec) W_decᵀ, signed, and x̂ = z W_dec + b_dec."""

    W_dec: Float[Array, "feature d"]
    """Orthonormal rows."""
    b_dec: Float[Array, " d"]
    k: int | None = dataclasses.field(default=None, metadata={"static": True})
    """Keep the `k` entries of z with the largest |z| in each row. None: keep all."""

    def encode(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch feature"]:
        rows = x.reshape(-1, x.shape[-1]).astype(self.W_dec.dtype)
        z = (rows - self.b_dec[None, :]) @ self.W_dec.T
        if self.k is not None:
            indices = top_k(jnp.abs(z), self.k)[1]
            on = jnp.zeros(z.shape, bool).at[jnp.arange(len(z))[:, None], indices].set(True)
            z = jnp.where(on, z, jnp.zeros_like(z))
        return z.reshape(*x.shape[:-1], -1)

    def directions(self) -> Float[Array, "feature d"]:
        return self.W_dec

    def decode(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d"]:
        return _linear(z, self.W_dec, self.b_dec)


def _linear(z: Array, W_dec: Array, b_dec: Array) -> Array:
    x_hat = z.astype(W_dec.dtype) @ W_dec
    return x_hat + jnp.broadcast_to(b_dec, x_hat.shape)


def random_dictionary(
    key: Key[Array, ""], d: int, n_features: int, k: int, b_dec: Float[Array, " d"] | None = None
) -> Dictionary:
    """An untrained TopK dictionary. Directions are uniform on the sphere, and the encoder is the transposed decoder.

    Args:
      key: the random key for the directions.
      d: the width of the activations.
      n_features: the number of features.
      k: the number of latents on per row.
      b_dec: the bias of the decoder. Give the mean of the activations: without it, most of the error comes from the
        mean. None: 0.
    """
    return init_sae(key, d, n_features, TopK(k).init(n_features, jnp.float32), b_dec)


def random_like(key: Key[Array, ""], dictionary: Dictionary) -> Dictionary:
    """A copy of `dictionary` with random directions. Norms, biases and the activation stay the same.

    The encoder column and the decoder row of a feature point in the same random direction. L0 can change, except with
    TopK, so report the L0 of the control too.

    Raises:
      UserError: the dictionary does not write the value that it reads, or has a skip.
    """
    W_enc, W_dec = dictionary.W_enc, dictionary.W_dec
    if not dictionary.is_autoencoder():
        raise UserError(
            f"random_like needs W_enc [d, feature] and W_dec [feature, d] without a skip; the shapes are {W_enc.shape} "
            f"and {W_dec.shape}. A form that reads and writes different values needs a control of its own"
        )
    directions = unit_rows(jax.random.normal(key, W_dec.shape, W_dec.dtype))
    norm = lambda W: jnp.sqrt(jnp.sum(W * W, axis=1, keepdims=True))
    read = directions.astype(W_enc.dtype) * norm(W_enc.T)
    return dataclasses.replace(dictionary, W_enc=read.T, W_dec=directions * norm(W_dec))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Refit(SparseCoder):
    """The encoder of one dictionary with another decoder."""

    encoder: EncoderDecoder
    W_dec: Float[Array, "feature d"]
    b_dec: Float[Array, " d"]

    def encode(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch feature"]:
        return self.encoder.encode(x)

    def directions(self) -> Float[Array, "feature d"]:
        return self.W_dec

    def decode(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d"]:
        return _linear(z, self.W_dec, self.b_dec)


def check_sae(dictionary: EncoderDecoder, what: str) -> None:
    """Raise UserError if the weights show that the dictionary does not write the value that it reads."""
    if not as_sparse_coder(dictionary).is_autoencoder():
        raise UserError(
            f"{what} can be fitted for an SAE only; this dictionary reads one value and writes another value"
        )


def check_affine_sae(dictionary: EncoderDecoder, what: str) -> None:
    """Raise UserError if the output of the dictionary is not z W_dec + b_dec."""
    check_sae(dictionary, what)
    if not as_sparse_coder(dictionary).decodes_alone():
        raise UserError(
            f"{what} can be fitted only for a dictionary whose output is z W_dec + b_dec; that of a "
            f"{type(dictionary).__name__} depends on its input too"
        )


def refit(dictionary: EncoderDecoder, rows: Rows, ridge: float = 1e-6) -> Refit:
    """Keep the encoder of `dictionary`, and fit the decoder and its bias by least squares.

    The result minimises Σ‖x - x̂‖², like training only the decoder. The normal equations need (feature + 1)² floats.

    Args:
      dictionary: an SAE. Its encoder is kept.
      rows: batches of activations.
      ridge: penalty on the decoder, relative to the mean square of a latent. It keeps the rows of dead latents at 0.

    Raises:
      UserError: the dictionary does not write the value that it reads, or there are no rows.
    """
    check_sae(dictionary, "a decoder")

    @jax.jit
    def of_batch(dictionary, x):
        x, z = x.astype(jnp.float32), dictionary.encode(x).astype(jnp.float32)
        z = jnp.concatenate([z, jnp.ones((len(z), 1), z.dtype)], axis=1)
        exact = jax.lax.Precision.HIGHEST
        return jnp.matmul(z.T, z, precision=exact), jnp.matmul(z.T, x, precision=exact)

    gram, cross = sum_batches(rows, lambda x: of_batch(dictionary, x))
    penalty = np.full(len(gram), ridge * np.trace(gram[:-1, :-1]) / max(len(gram) - 1, 1) + 1e-30)
    penalty[-1] = 0.0  # no penalty on the bias
    W = np.linalg.solve(gram + np.diag(penalty), cross)
    return Refit(dictionary, jnp.asarray(W[:-1], jnp.float32), jnp.asarray(W[-1], jnp.float32))


def frozen_random_encoder(key: Key[Array, ""], rows: Iterable[Array], n_features: int, k: int) -> Refit:
    """A random TopK dictionary with a fitted decoder. Its bias for encoding is the mean of the first batch."""
    rows = list(rows)
    if not rows:
        raise UserError("frozen_random_encoder got no rows: give an iterable of [row, d] arrays")
    mean = jnp.mean(rows[0].astype(jnp.float32), axis=0)
    return refit(random_dictionary(key, rows[0].shape[1], n_features, k, mean), rows)


def principal_components(rows: Rows, k: int) -> Basis:
    """The mean and the first `k` principal components as a dictionary. z is signed and L0 = k. FVU is
    Σ_{i>k} λ_i / Σ λ_i. No linear code of k dimensions has a lower FVU."""

    @jax.jit
    def of_batch(x):
        x = x.astype(jnp.float32)
        x = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)
        return jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)

    moments = sum_batches(rows, of_batch)
    n, d = moments[-1, -1], len(moments) - 1
    if not 0 < k <= d:
        raise UserError(f"k={k} principal components of {d} dimensions: k must be from 1 to {d}")
    mean = moments[-1, :-1] / n
    components = np.linalg.eigh(moments[:-1, :-1] / n - np.outer(mean, mean))[1][:, ::-1][:, :k].T
    return Basis(jnp.asarray(components, jnp.float32), jnp.asarray(mean, jnp.float32))


def neurons(d: int, k: int, b_dec: Float[Array, " d"] | None = None) -> Basis:
    """A baseline without a dictionary: coordinates are the features, and the `k` largest magnitudes are on."""
    if not 0 < k <= d:
        raise UserError(f"k={k} of {d} neurons: k must be from 1 to {d}")
    return Basis(jnp.eye(d), jnp.zeros((d,)) if b_dec is None else b_dec, k)


def oracle(
    directions: Float[Array, "feature d"], bias: Float[Array, " d"], threshold: Float[Array, "..."] | float
) -> Dictionary:
    """The true features as a dictionary. The decoder has their directions, and the encoder is its pseudo-inverse.

    The codes are exact if the directions are linearly independent. With more features than dimensions, features
    interfere in the codes, and only the decoder is right.

    Args:
      directions: the directions of the true features.
      bias: the activation when no feature is on.
      threshold: latents at or below it are off. Half the magnitude of a feature that is on works well. One number, or
        one number per feature.
    """
    W_enc = jnp.linalg.pinv(directions)
    jump = Jump.of(jnp.broadcast_to(jnp.asarray(threshold, directions.dtype), (directions.shape[0],)))
    return Dictionary(W_enc, -(bias @ W_enc), directions, bias, jump, centred=False)
