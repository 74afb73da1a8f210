"""`UNSTEERED`: the steering that changes nothing. The model without any edit is measured with it, as all others are."""

from __future__ import annotations

import dataclasses

from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.vector import Strength
from jax_interp.surgery import Edit


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Unsteered:
    """A `Steering` without edits. Strength 0 of another one may change the model, such as that of `ablate_then_add`."""

    def edits(self, strength: Strength = 1.0) -> tuple[Edit, ...]:
        """No edit."""
        return ()


UNSTEERED = Unsteered()
