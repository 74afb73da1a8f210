"""Which latents of a two-model crosscoder belong to one model only (Minder, Dumas et al. 2025, arXiv:2504.02922).

A small decoder norm does not prove that a model lacks a concept: an L1 penalty drives small norms to 0 (complete
shrinkage) and can split a shared concept into two exclusive latents (latent decoupling). Latent scaling asks how much
of latent j each model still has in it, along the direction d_j of the reference model:

    β(Y) = argmin_β Σ ‖Y - β f_j d_j‖² = d_j·Σ f_j Y / (‖d_j‖² Σ f_j²)

with Y a model's reconstruction x̂ (ν^r = β^r_other / β^r_reference, high: decoupling) or its error without the latent,
x - (x̂ - f_j d_j^model) (ν^ε likewise, high: shrinkage). Biases are in x̂, as in the published code.

    sums = None
    for h in pairs: sums = add_batch(sums, scaling_sums(crosscoder, h))
    scaling = latent_scaling_of(sums, crosscoder.W_dec)
    truly_exclusive(scaling)

The two models' values stand side by side in the last axis (`h` [row, 2·d], scaled as the crosscoder was trained), or
have an axis of their own ([row, 2, d]); `W_dec` likewise. Side by side their widths cannot be told from the array: they
must be the same, as training and `model_diff.compare` make sure.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError

Sums = dict[str, Any]


def relative_norms(W_dec: Float[Array, "feature *sites"]) -> Float[np.ndarray, " feature"]:
    """‖d^1‖ / (‖d^0‖ + ‖d^1‖) (Lindsey et al. 2024; Kissane et al.): 0 only in model 0, 1/2 shared, 1 only in model 1.
    0.9 is a ratio of norms of 9 : 1. NaN where both are 0."""
    a, b = _norms(W_dec)
    with np.errstate(invalid="ignore"):
        return b / (a + b)


def norm_difference(W_dec: Float[Array, "feature *sites"]) -> Float[np.ndarray, " feature"]:
    """½ (1 + (‖d^1‖ - ‖d^0‖) / max(‖d^0‖, ‖d^1‖)) (Minder et al.): the same ends and middle, and another scale between
    them: 0.9 is a ratio of norms of 5 : 1."""
    a, b = _norms(W_dec)
    with np.errstate(invalid="ignore"):
        return 0.5 * (1 + (b - a) / np.maximum(a, b))


def _norms(W_dec: Array) -> tuple[np.ndarray, np.ndarray]:
    norms = np.linalg.norm(np.asarray(_two(W_dec), np.float64), axis=2)
    return norms[:, 0], norms[:, 1]


def _two(a: Array) -> Float[Array, "row 2 d"]:
    """With an axis for the models. UserError where there are not two of the same width."""
    if a.ndim not in (2, 3) or (a.shape[-1] % 2 if a.ndim == 2 else a.shape[1] != 2):
        raise UserError(f"values of two models are [row, 2·d] or [row, 2, d], not {a.shape}")
    return a.reshape(a.shape[0], 2, -1)


@dataclasses.dataclass(frozen=True)
class Classes:
    """Masks over features; between the three lie those that are neither."""

    only_0: Bool[np.ndarray, " feature"]
    shared: Bool[np.ndarray, " feature"]
    only_1: Bool[np.ndarray, " feature"]


def classes(position: Float[np.ndarray, " feature"]) -> Classes:
    """By `relative_norms` or `norm_difference`, whose classes are not the same, at the published bounds: below 0.1,
    0.4 to 0.6, above 0.9."""
    return Classes(position < 0.1, (position >= 0.4) & (position <= 0.6), position > 0.9)


@partial(jax.jit, static_argnames="reference")
def scaling_sums(dictionary: Any, h: Float[Array, "row *sites"], reference: int = 1) -> Sums:
    """What a batch adds, one pass for all latents: `dictionary.encode(h)` [row, feature], decode -> as `h`."""
    f = dictionary.encode(h).astype(jnp.float32)
    x_hat, h = _two(dictionary.decode(f)).astype(jnp.float32), _two(h).astype(jnp.float32)
    direction = _two(dictionary.W_dec)[:, reference].astype(jnp.float32)

    def along(Y):  # Σ_row f_j (d_j · Y)
        aligned = jnp.einsum("nsd,fd->snf", Y, direction, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(aligned * jnp.broadcast_to(f[None], aligned.shape), axis=1)

    return {"square": jnp.sum(f * f, axis=0), "reconstruction": along(x_hat), "residual": along(h - x_hat)}


@dataclasses.dataclass(frozen=True)
class LatentScaling:
    """β [site, feature] and ν [feature], NaN for latents that never fired."""

    beta_reconstruction: Float[np.ndarray, "site feature"]
    beta_error: Float[np.ndarray, "site feature"]
    nu_reconstruction: Float[np.ndarray, " feature"]
    nu_error: Float[np.ndarray, " feature"]


def latent_scaling_of(total: Sums, W_dec: Float[Array, "feature *sites"], reference: int = 1) -> LatentScaling:
    """`reference` is the model whose exclusive latents are in question (the fine-tuned one), as in `scaling_sums`."""
    W = np.asarray(_two(W_dec), np.float64)
    direction = W[:, reference]
    # the latent's own part, which its error target still has: Σ f² d_j·d_j^model
    own = total["square"][None] * np.einsum("fsd,fd->sf", W, direction)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = 1 / (np.sum(direction**2, axis=1) * total["square"])
        of_reconstruction, of_error = total["reconstruction"] * scale, (total["residual"] + own) * scale
        return LatentScaling(
            beta_reconstruction=of_reconstruction,
            beta_error=of_error,
            nu_reconstruction=of_reconstruction[1 - reference] / of_reconstruction[reference],
            nu_error=of_error[1 - reference] / of_error[reference],
        )


def truly_exclusive(
    scaling: LatentScaling, nu_error: float = 0.2, nu_reconstruction: float = 0.5
) -> Bool[np.ndarray, " feature"]:
    """Latents that the other model really lacks: ν^ε and ν^r both below the published bounds."""
    return (scaling.nu_error < nu_error) & (scaling.nu_reconstruction < nu_reconstruction)
