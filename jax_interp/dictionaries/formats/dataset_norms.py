"""Settings that OpenMOSS's formats share (Llama Scope, llamascopium): scaled activations, and gates with decoder norms.

These dictionaries are trained on activations times sqrt(d) / (their mean norm in the dataset). The factor is folded
into the weights, so that raw activations are read and written. Latents and thresholds keep the units of training.

If `sparsity_include_decoder_norm` is set, a latent is on where its pre-activation times the norm of its decoder row is
above the threshold. The norm is folded into the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import ReLU, TopK
from jax_interp.dictionaries.activations.activation import Activation
from jax_interp.dictionaries.activations.jumprelu import Jump

SCALED = "its latents have the units of its training, where activations are scaled to a mean norm of sqrt(d)"
_REFUSED = {
    "use_glu_encoder": "its encoder has a second, gating matrix",
    "apply_decoder_bias_to_pre_encoder": "it subtracts its decoder's bias from scaled inputs",
}


def check_settings(config: Mapping[str, Any], where: str) -> None:
    """Raise UserError for settings that no form here has."""
    for name, why in _REFUSED.items():
        if config.get(name):
            raise UserError(f"{where} sets {name}: {why}, which no form here has")


def scale_of(d: int, norm: Any, what: str) -> float:
    """The factor sqrt(d) / norm. Raises UserError if the norm was never measured: files then hold any number."""
    if isinstance(norm, bool) or not isinstance(norm, (int, float)) or not (math.isfinite(norm) and norm > 0):
        raise UserError(
            f"the mean norm of {what} is {norm!r}, so it was not measured: without it the scale is not known"
        )
    return math.sqrt(d) / norm


def activation_of(
    config: Mapping[str, Any],
    threshold: Callable[[], Float[Array, " feature"]],
    norms: Callable[[], Float[Array, " feature"]],
    where: str,
) -> Activation:
    """The activation that `act_fn` names.

    Args:
      config: the settings, with act_fn, top_k and sparsity_include_decoder_norm.
      threshold: gives the thresholds of the pre-activations times the norms.
      norms: gives the norms of the decoder rows as stored. They count only if the config says so.
      where: the name of the config file, for messages.
    """
    kind = str(config.get("act_fn", "relu")).lower()
    weighted = includes_norms(config)
    if kind == "relu":
        return ReLU()  # a positive factor does not change a sign
    if kind == "jumprelu":
        return Jump.of(threshold() / norms() if weighted else threshold())
    if kind == "topk":
        k = config.get("top_k", 50)
        if type(k) is not int or k < 1:
            raise UserError(f"{where} has top_k {k!r}: a positive number is needed")
        return TopK(k, weighted=weighted)
    known = ("batchtopk", "layertopk", "batchlayertopk")
    why = "its latents compete with those of other rows or layers; llamascopium converts it to jumprelu"
    raise UserError(f"{where} has act_fn {kind!r}: {why if kind in known else 'known are relu, jumprelu and topk'}")


def includes_norms(config: Mapping[str, Any]) -> bool:
    """Whether gates compare pre-activations times decoder norms. It is the default of these formats."""
    return bool(config.get("sparsity_include_decoder_norm", True))


def row_norms(W_dec: Float[Array, "feature *target d"]) -> Float[Array, " feature"]:
    """The norm of each decoder row over all that it writes, in at least float32."""
    rows = W_dec.astype(jnp.promote_types(W_dec.dtype, jnp.float32))
    return jnp.sqrt(jnp.sum(rows * rows, axis=tuple(range(1, rows.ndim))))
