"""One small MLP for each component, which reads the whole input of the matrix."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.components import Decomposed, broadcast_bias
from jax_interp.decomposition.importance.base import (
    IMPORTANCE_FUNCTIONS,
    ImportanceConfig,
    PerMatrix,
    gelu,
    normal_init,
    require_vectors,
)
from jax_interp.decomposition.matrices import is_stacked


@IMPORTANCE_FUNCTIONS.register
@reads_older_files(called=("VectorGates",))
@dataclasses.dataclass(frozen=True)
class VectorMLP(ImportanceConfig):
    """One MLP for each component: `g_c = Σ_h wo[c, h] gelu(Σ_i wi[c, i, h] x_i + bi[c, h]) + bo[c]`.

    This needs memory for rows · C · hidden numbers.
    """

    row_by_row: ClassVar[bool] = True
    hidden: int = 16

    def init(self, key: Key[Array, ""], model: Decomposed) -> VectorMLPFunction:
        found = {}
        for i, name in enumerate(model.names):
            *layer, d_in, C = model.of(name).V.shape
            first, second = jax.random.split(jax.random.fold_in(key, i))
            found[name] = VectorMLPs(
                normal_init(first, (*layer, C, d_in, self.hidden), d_in, 2**0.5),
                jnp.zeros((*layer, C, self.hidden)),
                normal_init(second, (*layer, C, self.hidden), self.hidden),
                jnp.zeros((*layer, C)),
            )
        return VectorMLPFunction(found)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class VectorMLPs:
    """The MLPs of one matrix, one for each component."""

    wi: Float[Array, "*layer C d_in hidden"]
    bi: Float[Array, "*layer C hidden"]
    wo: Float[Array, "*layer C hidden"]
    bo: Float[Array, "*layer C"]

    def __call__(self, x: Float[Array, "*rows d_in"]) -> Float[Array, "*rows C"]:
        z = jnp.einsum("...i,cih->...ch", x, self.wi.astype(x.dtype))
        g = jnp.einsum("...ch,ch->...c", gelu(z + broadcast_bias(self.bi, z)), self.wo.astype(x.dtype))
        return g + broadcast_bias(self.bo, g)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class VectorMLPFunction:
    """The importance function of `VectorMLP`. Saved files use the name of the field `gates`."""

    gates: dict[str, VectorMLPs]

    def __call__(self, model: Decomposed, inputs: PerMatrix) -> PerMatrix:
        call = lambda mlps, x: mlps(x)
        return {
            name: (jax.vmap(call) if is_stacked(name) else call)(self.gates[name], x)
            for name, x in require_vectors(inputs).items()
        }
