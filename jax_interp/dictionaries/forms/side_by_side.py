"""Present a cross-layer dictionary as one dictionary whose values are side by side, as `evaluate` expects.

    evaluate(model, reads, SideBySide(clt), batches, writes=targets)

`reads` has one address per source, and `targets` one per target. The latents are those of all sources together: L0 and
the number of dead features are sums over the sources. `evaluate` also gives them per source, and FVU per target. All
targets are replaced at once, by what the latents of the clean run write.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.sparse_coder import SparseCoder


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SideBySide(SparseCoder):
    """A cross-layer dictionary whose sources' values, latents and target values are each side by side in the last axis.

    All values that the sources read must have the same width.
    """

    dictionary: CrossLayer

    @property
    def n_sources(self) -> int:
        return len(self.dictionary.sources)

    def encode(self, x: Float[Array, "*batch source_d_in"]) -> Float[Array, "*batch source_feature"]:
        return _together(self.dictionary.encode(self._apart(x)))

    def decode(self, z: Float[Array, "*batch source_feature"]) -> Float[Array, "*batch target_d_out"]:
        return _together(self.dictionary.decode(self._apart(z)))

    def output(self, x: Array, z: Array) -> Float[Array, "*batch target_d_out"]:
        """The full output: `decode(z)` plus the skips from `x`."""
        z, x = self._apart(z), self._apart(x)
        return _together(jnp.stack([self.dictionary.write(t, z, x[t]) for t in range(len(x))]))

    def _apart(self, a: Array) -> Float[Array, "source *batch width"]:
        return jnp.stack(jnp.split(a, self.n_sources, axis=-1))


def _together(a: Float[Array, "source *batch width"]) -> Array:
    return jnp.concatenate(list(a), axis=-1)
