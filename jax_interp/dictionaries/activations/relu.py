"""ReLU: every latent with a positive pre-activation is on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from jax_interp.dictionaries.codes import DenseCode


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReLU:
    """f = max(pre, 0) (Bricken et al. 2023)."""

    def init(self, n_features: int, dtype: Any) -> ReLU:
        return self

    def encode(self, dictionary: Any, x: Float[Array, "row d"]) -> DenseCode:
        pre = dictionary.linear(x) + dictionary.b_enc[None, :]
        return DenseCode(jax.nn.relu(pre), pre)

    def scaled(self, factor: Float[Array, ""]) -> ReLU:
        """The activation with activation'(factor · pre) = factor · activation(pre)."""
        return self
