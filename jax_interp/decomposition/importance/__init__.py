"""Causal importance functions (`ci_fn`). They predict from a matrix's input how much each component is needed.

    config = ScalarMLP(hidden=16)
    ci_fn = config.init(key, decomposed)
    values = ci_fn(decomposed, inputs)           # {entry: [*layer, batch, ..., C]} before the sigmoid

A config is a frozen dataclass. Its `init` returns a pytree of parameters, which is called as above. Every file of this
folder registers its configs in `IMPORTANCE_FUNCTIONS`.
"""

from jax_interp.core.registry import discover
from jax_interp.decomposition.importance.base import (
    IMPORTANCE_FUNCTIONS,
    Importance,
    ImportanceConfig,
    ImportanceFunction,
    causal_importance,
    read_inputs,
)
from jax_interp.decomposition.importance.scalar_mlp import ScalarMLP
from jax_interp.decomposition.importance.shared_mlp import GlobalMLP, SharedMLP
from jax_interp.decomposition.importance.transformer import GlobalTransformer
from jax_interp.decomposition.importance.vector_mlp import VectorMLP

discover(__name__, __path__)

__all__ = [
    "IMPORTANCE_FUNCTIONS", "GlobalMLP", "GlobalTransformer", "Importance", "ImportanceConfig", "ImportanceFunction",
    "ScalarMLP", "SharedMLP", "VectorMLP", "causal_importance", "read_inputs",
]  # fmt: skip
