"""Causal importance: from what a matrix reads to how needed each of its components is.

    config = ScalarGates(hidden=16)
    gates = init_importance(config, key, decomposed)
    values = gates(decomposed, inputs)           # {entry: [*layer, batch, ..., C]} before the sigmoid

`inputs` are what the *target* computes (`read_inputs`), never masked activations. A config is a frozen dataclass; what
it makes is a pytree of parameters, callable as above.
"""

from jax_interp.decomposition.importance.everything import GlobalGates
from jax_interp.decomposition.importance.inputs import Importance, causal_importance, init_importance, read_inputs
from jax_interp.decomposition.importance.scalar import ScalarGates
from jax_interp.decomposition.importance.shared import SharedGates
from jax_interp.decomposition.importance.transformer import TransformerGates
from jax_interp.decomposition.importance.vector import VectorGates

ImportanceConfig = ScalarGates | VectorGates | SharedGates | GlobalGates | TransformerGates

__all__ = [
    "GlobalGates", "Importance", "ImportanceConfig", "ScalarGates", "SharedGates", "TransformerGates", "VectorGates",
    "causal_importance", "init_importance", "read_inputs",
]  # fmt: skip
