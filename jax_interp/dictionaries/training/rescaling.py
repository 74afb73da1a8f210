"""Undo feature suppression: rescale the latents of a dictionary that was trained with L1 (Wright & Sharkey 2024).

An L1 penalty makes latents too small. If the set of latents that fire is held fixed, the best scales solve a
least-squares problem:

    one scale for all     s* = E[x̂·x] / E‖x̂‖², which is 1 / γ               (x and x̂ without b_dec)
    one for each latent   (FᵀF ∘ D Dᵀ) s = diag(Fᵀ (X - b) Dᵀ)               D = W_dec, F the codes

No fine-tuning is needed. `rescaled(sae, latent_scales(sae, rows))` has the same L0, γ = 1 (computed about b_dec), and
the smallest SSE that rescaling can reach. This works for SAEs only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.evaluation.batch_sums import sum_batches
from jax_interp.dictionaries.evaluation.controls import check_affine_sae
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.sparse_coder import SparseCoder, as_sparse_coder


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Rescaled(SparseCoder):
    """A dictionary whose latents are multiplied by `scale`: one number, or one number per latent."""

    dictionary: Dictionary
    scale: Float[Array, "..."]

    @property
    def W_dec(self) -> Array:
        return self.dictionary.W_dec

    @property
    def b_dec(self) -> Array:
        return self.dictionary.b_dec

    def encode(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch feature"]:
        z = self.dictionary.encode(x)
        return z * jnp.broadcast_to(self.scale, z.shape).astype(z.dtype)

    def decode(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d"]:
        return self.dictionary.decode(z)

    def output(self, x: Float[Array, "row d"], z: Float[Array, "row feature"]) -> Float[Array, "row d_out"]:
        """The output for the input `x` with latents `z`. A skip is not scaled."""
        return as_sparse_coder(self.dictionary).output(x, z)

    def directions(self) -> Array | None:
        return as_sparse_coder(self.dictionary).directions()

    def written(
        self,
        x: Float[Array, "*batch d_in"] | None,
        features: Int[Array, " chosen"],
        change: Float[Array, "*batch chosen"],
    ) -> Float[Array, "*batch d_out"]:
        """The change of the output if some of the scaled latents change."""
        return as_sparse_coder(self.dictionary).written(x, features, change)

    def is_autoencoder(self) -> bool:
        return as_sparse_coder(self.dictionary).is_autoencoder()

    def decodes_alone(self) -> bool:
        return as_sparse_coder(self.dictionary).decodes_alone()


def rescaled(dictionary: Dictionary, scale: Float[np.ndarray, "..."] | float) -> Rescaled:
    """Multiply the latents of `dictionary` by `scale`: one number, or one number per latent.

    Example:
        better = rescaled(sae, latent_scales(sae, rows))
    """
    return Rescaled(dictionary, jnp.asarray(scale, dictionary.W_dec.dtype))


def global_scale(dictionary: Dictionary, rows: Iterable[Float[Array, "row d"]]) -> float:
    """The best common scale s* = 1 / γ for all latents, computed about b_dec.

    Args:
      dictionary: an SAE.
      rows: batches of activations, read once.
    """
    check_affine_sae(dictionary, "a scale")

    @jax.jit
    def of_batch(dictionary, x):
        z = dictionary.encode(x).astype(jnp.float32)
        x_hat, x = z @ dictionary.W_dec.astype(jnp.float32), _without_bias(dictionary, x)
        return jnp.sum(x_hat * x), jnp.sum(x_hat * x_hat)

    cross, square = sum_batches(rows, lambda x: of_batch(dictionary, x))
    return float(cross / square) if square else 1.0


def latent_scales(
    dictionary: Dictionary, rows: Iterable[Float[Array, "row d"]], ridge: float = 1e-6, nonnegative: bool = True
) -> Float[np.ndarray, " feature"]:
    """The scales of all latents that together minimise Σ‖x - x̂‖². A dead latent gets scale 1.

    This needs feature² floats, and the solution of a linear system of this size on the host.

    Args:
      dictionary: an SAE.
      rows: batches of activations, read once.
      ridge: the strength of a penalty that pulls scales towards 1, relative to the mean of the diagonal. It determines
        scales that the data do not determine.
      nonnegative: whether to forbid negative scales. A negative scale would reverse a feature.

    Returns:
      One scale for each latent, float64.
    """
    check_affine_sae(dictionary, "scales")

    @jax.jit
    def of_batch(dictionary, x):
        z, D = dictionary.encode(x).astype(jnp.float32), dictionary.W_dec.astype(jnp.float32)
        exact = jax.lax.Precision.HIGHEST
        aligned = jnp.matmul(_without_bias(dictionary, x), D.T, precision=exact)
        return jnp.matmul(z.T, z, precision=exact), jnp.sum(z * aligned, axis=0)

    gram, right = sum_batches(rows, lambda x: of_batch(dictionary, x))
    D = np.asarray(dictionary.W_dec, np.float64)
    A = gram * (D @ D.T)
    strength = ridge * max(np.trace(A) / len(A), 1e-30)
    A, right = A + strength * np.eye(len(A)), right + strength
    scale = np.linalg.solve(A, right)
    return _nonnegative(A, right) if nonnegative and (scale < 0).any() else scale


def _nonnegative(A: np.ndarray, right: np.ndarray) -> np.ndarray:
    """argmin s A s / 2 - right·s over s >= 0, as least squares on a Cholesky factor."""
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    L = np.linalg.cholesky(A)
    return nnls(L.T, solve_triangular(L, right, lower=True))[0]


def _without_bias(dictionary: Dictionary, x: Array) -> Array:
    return x.astype(jnp.float32) - dictionary.b_dec.astype(jnp.float32)[None, :]
