"""Find the latents of a crosscoder that belong to only one of two models (Minder, Dumas et al. 2025, arXiv:2504.02922).

A small decoder norm does not prove that a model lacks a concept. An L1 penalty shrinks small norms to 0 (complete
shrinkage), and it can split a shared concept into two exclusive latents (latent decoupling). Latent scaling measures
how much of latent j is present in each model, along the direction d_j of the reference model:

    β(Y) = argmin_β Σ ‖Y - β f_j d_j‖² = d_j · Σ f_j Y / (‖d_j‖² Σ f_j²)

Y is either the reconstruction x̂ of a model, or its error without the latent, x - (x̂ - f_j d_j^model). The ratio is
ν = β_other / β_reference. Computed from the reconstruction, ν^r is high for decoupled latents. Computed from the error,
ν^ε is high for shrunk latents. The reconstruction includes the biases, as in the published code.

    scaling = latent_scaling(crosscoder, batches)
    truly_exclusive(scaling)

The values of the two models are either side by side in the last axis, [row, 2·d], or they have an axis of their own,
[row, 2, d]. The same holds for `W_dec`. Both models must have the same width, and values must be scaled as in the
training of the crosscoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.batch_sums import sum_batches

ScalingSums = dict[str, Array]
"""The sums over rows that latent scaling needs. Sums of several batches can be added."""


class Crosscoder(Protocol):
    """The part of a crosscoder that latent scaling needs."""

    @property
    def W_dec(self) -> Float[Array, "feature *sites"]: ...

    def encode(self, x: Float[Array, "row *sites"]) -> Float[Array, "row feature"]: ...

    def decode(self, latents: Float[Array, "row feature"]) -> Float[Array, "row *sites"]: ...


def relative_norms(W_dec: Float[Array, "feature *sites"]) -> Float[np.ndarray, " feature"]:
    """‖d^1‖ / (‖d^0‖ + ‖d^1‖), the relative decoder norm of Lindsey et al. 2024 and Kissane et al. 2024.

    It is 0 for a latent of model 0 only, 1/2 for a shared latent, and 1 for a latent of model 1 only. 0.9 means norms
    of 9 : 1. It is NaN if both norms are 0.
    """
    a, b = _norms(W_dec)
    with np.errstate(invalid="ignore"):
        return b / (a + b)


def norm_difference(W_dec: Float[Array, "feature *sites"]) -> Float[np.ndarray, " feature"]:
    """½ (1 + (‖d^1‖ - ‖d^0‖) / max(‖d^0‖, ‖d^1‖)), the relative norm difference of Minder et al. 2025.

    It equals `relative_norms` at 0, 1/2 and 1. In between, the scale is different: 0.9 means norms of 5 : 1.
    """
    a, b = _norms(W_dec)
    with np.errstate(invalid="ignore"):
        return 0.5 * (1 + (b - a) / np.maximum(a, b))


@dataclasses.dataclass(frozen=True)
class NormClasses:
    """One mask over latents per class. Latents between the bounds are in no class.

    Args:
      only_0: latents of model 0 only.
      shared: latents of both models.
      only_1: latents of model 1 only.
    """

    only_0: Bool[np.ndarray, " feature"]
    shared: Bool[np.ndarray, " feature"]
    only_1: Bool[np.ndarray, " feature"]


def classify(norms: Float[np.ndarray, " feature"]) -> NormClasses:
    """Classify each latent by the published bounds: below 0.1, 0.4 to 0.6, and above 0.9.

    Args:
      norms: the result of `relative_norms` or of `norm_difference`. The two give different classes.

    Returns:
      A mask for each class.
    """
    return NormClasses(norms < 0.1, (norms >= 0.4) & (norms <= 0.6), norms > 0.9)


@dataclasses.dataclass(frozen=True)
class LatentScaling:
    """Latent scaling of every latent. NaN for latents that never fired.

    A ratio ν is also NaN if β of the reference model is not positive: the latent is then no part of that model, and a
    ratio below 0 would pass for an exclusive latent.

    Args:
      beta_reconstruction: β for the reconstruction of each model.
      beta_error: β for the error of each model without the latent.
      nu_reconstruction: ν^r, the ratio of `beta_reconstruction`: the other model divided by the reference model.
      nu_error: ν^ε, the same ratio of `beta_error`.
    """

    beta_reconstruction: Float[np.ndarray, "2 feature"]
    beta_error: Float[np.ndarray, "2 feature"]
    nu_reconstruction: Float[np.ndarray, " feature"]
    nu_error: Float[np.ndarray, " feature"]


def latent_scaling(
    crosscoder: Crosscoder, batches: Iterable[Float[Array, "row *sites"]], reference: int = 1
) -> LatentScaling:
    """Measure how much of each latent is present in each of two models.

    Args:
      crosscoder: a crosscoder of two models.
      batches: values of both models, [row, 2·d] or [row, 2, d], scaled as the crosscoder was trained.
      reference: the index of the model whose exclusive latents are tested, usually the fine-tuned model.

    Returns:
      β and ν of every latent.

    Raises:
      UserError: there are no rows, or they are not of two models.

    Example:
        scaling = latent_scaling(crosscoder, batches)
        truly_exclusive(scaling) & classify(norm_difference(crosscoder.W_dec)).only_1
    """
    sums = sum_batches(batches, lambda rows: scaling_sums(crosscoder, rows, reference))
    return scaling_from_sums(sums, crosscoder.W_dec, reference)


@partial(jax.jit, static_argnames="reference")
def scaling_sums(crosscoder: Crosscoder, rows: Float[Array, "row *sites"], reference: int = 1) -> ScalingSums:
    """The sums of one batch that latent scaling needs, for all latents in one pass."""
    f = crosscoder.encode(rows).astype(jnp.float32)
    x_hat, x = _by_model(crosscoder.decode(f)).astype(jnp.float32), _by_model(rows).astype(jnp.float32)
    direction = _by_model(crosscoder.W_dec)[:, reference].astype(jnp.float32)

    def along(Y: Float[Array, "row 2 d"]) -> Float[Array, "2 feature"]:  # Σ_row f_j (d_j · Y)
        aligned = jnp.einsum("nsd,fd->snf", Y, direction, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(aligned * jnp.broadcast_to(f[None], aligned.shape), axis=1)

    return {"square": jnp.sum(f * f, axis=0), "reconstruction": along(x_hat), "residual": along(x - x_hat)}


def scaling_from_sums(sums: ScalingSums, W_dec: Float[Array, "feature *sites"], reference: int = 1) -> LatentScaling:
    """Compute latent scaling from `scaling_sums`, added up over all batches."""
    W = np.asarray(_by_model(W_dec), np.float64)
    direction = W[:, reference]
    # the error without latent j is the residual plus the latent's own part, which adds Σ f² d_j·d_j^model
    latent = sums["square"][None] * np.einsum("fsd,fd->sf", W, direction)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = 1 / (np.sum(direction**2, axis=1) * sums["square"])
        reconstruction, error = sums["reconstruction"] * scale, (sums["residual"] + latent) * scale
        ratio = lambda beta: np.where(beta[reference] > 0, beta[1 - reference] / beta[reference], np.nan)
        return LatentScaling(reconstruction, error, nu_reconstruction=ratio(reconstruction), nu_error=ratio(error))


def truly_exclusive(
    scaling: LatentScaling, nu_error: float = 0.2, nu_reconstruction: float = 0.5
) -> Bool[np.ndarray, " feature"]:
    """The latents that the other model does not have: ν^ε and ν^r are both below the published bounds."""
    return (scaling.nu_error < nu_error) & (scaling.nu_reconstruction < nu_reconstruction)


def _norms(W_dec: Float[Array, "feature *sites"]) -> tuple[np.ndarray, np.ndarray]:
    norms = np.linalg.norm(np.asarray(_by_model(W_dec), np.float64), axis=2)
    return norms[:, 0], norms[:, 1]


def _by_model(values: Float[Array, "row *sites"]) -> Float[Array, "row 2 d"]:
    """Give `values` an axis for the models. Raises UserError if the shape does not fit two models of one width."""
    if values.ndim not in (2, 3) or (values.shape[-1] % 2 if values.ndim == 2 else values.shape[1] != 2):
        raise UserError(f"values of two models must be [row, 2·d] or [row, 2, d], not {values.shape}")
    return values.reshape(values.shape[0], 2, -1)
