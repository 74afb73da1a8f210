"""The config of an APD run."""

from __future__ import annotations

import dataclasses

from jax_interp.core.errors import UserError
from jax_interp.decomposition.config import METHODS, MethodConfig, Schedule


@METHODS.register
@dataclasses.dataclass(frozen=True)
class APDConfig(MethodConfig):
    """A run of APD. The defaults are the paper's settings for TMS 5-2.

    The weight of each loss is the field with the name of that loss. A loss with weight 0 is not computed.
    """

    matrices: tuple[str, ...] = ("linear1",)
    tied: tuple[tuple[str, str], ...] = ()
    C: int = 5
    """The number of components. Each spans all matrices."""
    rank: int = 3
    """The largest rank of a component in each matrix."""
    top_k: float | None = 0.211
    """The number of components that are kept on a row, on average over the batch. None: nothing is masked, and the
    minimality loss is `lp_attribution`."""
    parameter_match: float = 1.0
    top_k_reconstruction: float = 1.0
    activation_reconstruction: float = 0.0
    activations: tuple[str, ...] = ()
    """Addresses of the hidden activations that are reconstructed."""
    simplicity: float = 0.7
    p: float = 1.0
    """The exponent of the simplicity loss."""
    lp: float = 0.0
    lp_power: float = 1.0
    init_scale: float = 1.0
    """The gain of the Xavier-normal initial values."""
    unit_norm: bool = False
    """Keep the columns of V (A in the paper) at norm one, and use only the gradients orthogonal to them."""
    steps: int = 20_000
    batch: int = 2048
    schedule: Schedule = dataclasses.field(default_factory=lambda: Schedule(0.03, "constant", warm_up=0.05))
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if not self.matrices:
            raise UserError('matrices=(): name at least one matrix, or "*" for all')
        for name in ("C", "rank", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: at least 1")
        if self.top_k is not None and not 0 < self.top_k <= self.C:
            raise UserError(f"top_k={self.top_k}: it must be above 0 and at most C={self.C}")
        if self.activation_reconstruction and not self.activations:
            raise UserError(
                f"activation_reconstruction={self.activation_reconstruction} without activations=: name the hidden "
                "values that are to be reconstructed"
            )
        if self.activation_reconstruction and self.top_k is None:
            raise UserError("activation_reconstruction= needs a top_k=: without top_k nothing is masked")
