"""What is known of toys beforehand: their features, which parts of the weights are theirs, and what a decomposition
should find on one-hot inputs.

A feature is one entry of a toy's input. TMS reads each along a row of W and writes it along a column of the transpose;
an inserted identity is shared by all. A residual MLP of fewer neurons than features reads each by a component of its
own (`mlp.up`) and writes with its neurons, which all share (`mlp.down`; SPD 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.surgery import depth_of
from jax_interp.toys.resid_mlp import ResidMLP
from jax_interp.toys.tms import TMS

Pattern = Literal["identity", "dense"]


@dataclass(frozen=True)
class KnownFeatures:
    """Matrices are named by patterns of addresses: `blocks.*.mlp.up` is that of any layer.

    patterns: "identity", a component for each feature; "dense", as many as the matrix has inputs, for all features.
    parts: V `[d_in, feature]` and U `[feature, d_out]` of the matrices that are sums of features' own rank-one parts.
    """

    count: int
    patterns: Mapping[str, Pattern]
    parts: Mapping[str, tuple[Float[Array, "d_in feature"], Float[Array, "feature d_out"]]]


def known_features(target: Any) -> KnownFeatures | None:
    """Those of a TMS or a residual MLP; None of other models.

    The parts of a residual MLP are those of one layer, where W_in reads feature i along the dual basis of the
    embedding's rows. Of more layers, later ones read what earlier ones made of the features, and the parts of a TMS
    that are shared are none's: there are none of those.
    """
    if isinstance(target, TMS):
        W = target.linear1.weight
        one_each = jnp.eye(W.shape[0], dtype=W.dtype)
        transpose = W.T if target.is_tied else target.linear2.weight
        return KnownFeatures(
            W.shape[0],
            {"linear[12]": "identity", "hidden_layers.*": "dense"},
            {"linear1": (one_each, W), "linear2": (transpose, one_each)},
        )
    if isinstance(target, ResidMLP):
        W_E, parts = target.embed.weight, {}
        if depth_of(target.blocks) == 1 and W_E.shape[0] <= W_E.shape[1]:  # otherwise they cannot be read apart
            parts["blocks.*.mlp.up"] = (jnp.linalg.pinv(W_E), W_E @ target.blocks[0].mlp.up.weight)
        patterns: dict[str, Pattern] = {"blocks.*.mlp.up": "identity", "blocks.*.mlp.down": "dense"}
        return KnownFeatures(W_E.shape[0], patterns, parts)
    return None
