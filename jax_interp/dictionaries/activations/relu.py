"""ReLU: every latent with a positive pre-activation is on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from jax_interp.dictionaries.activations.pre import PreCode, dense_pre
from jax_interp.dictionaries.codes import DenseCode


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReLU:
    """f = max(pre, 0) (Bricken et al. 2023)."""

    def init(self, n_features: int, dtype: Any) -> ReLU:
        return self

    def encode(self, dictionary: Any, x: Float[Array, "row d"]) -> DenseCode:
        return self.decide(dictionary, dense_pre(dictionary, x))

    def decide(self, dictionary: Any, code: PreCode) -> PreCode:
        return code.valued(jax.nn.relu(code.pre))

    def takes_part(self, dictionary: Any, pre: Float[Array, "row feature"]) -> Bool[Array, "row feature"]:
        return pre > 0

    def scaled(self, factor: Float[Array, ""]) -> ReLU:
        """The activation with activation'(factor · pre) = factor · activation(pre)."""
        return self
