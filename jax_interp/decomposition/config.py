"""What a decomposition run is: a frozen dataclass, to JSON and back by `jax_interp.core.config_json`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jax_interp.core.errors import UserError
from jax_interp.decomposition.components import Init
from jax_interp.decomposition.importance import ImportanceConfig, ScalarGates
from jax_interp.decomposition.losses import (
    ImportanceMinimality,
    Loss,
    StochasticLayerwise,
    StochasticReconstruction,
)
from jax_interp.decomposition.losses.scene import Compare, Precision
from jax_interp.decomposition.masks import Sampling
from jax_interp.decomposition.sigmoids import SIGMOIDS


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """AdamW on V and U for faithfulness alone, before the run."""

    steps: int = 200
    learning_rate: float = 0.01
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"WarmUp(steps={self.steps}): at least 0; warm_up=None is a run without")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate over the run: a linear rise over the first w steps, the fraction `warm_up` of all, then `kind`
    over the T that are left, as APD and SPD 2025 have it. The first step has 1/w of the rate; the published code's has
    none of it, and does nothing.

    "cosine": `f + (1 - f) ½ (1 + cos πt/(T-1))` with f the fraction `final` and t counted from the end of the rise;
    "quarter_cosine": `cos ½πt/(T-1)` (SPD and APD 2025); "linear": to `final`; "constant".
    """

    rate: float = 1e-3
    kind: Literal["constant", "cosine", "quarter_cosine", "linear"] = "cosine"
    final: float = 0.0
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if self.rate < 0 or not 0 <= self.warm_up < 1:
            raise UserError(f"Schedule(rate={self.rate}, warm_up={self.warm_up}): not below 0, and a fraction below 1")


@dataclasses.dataclass(frozen=True)
class DecompositionConfig:
    """The defaults are the recipe of 2026 for TMS 5-2: Δ, warm-up, scalar gates, stochastic losses."""

    matrices: tuple[str, ...] = ("linear1",)
    C: int | dict[str, int] = 20
    tied: tuple[tuple[str, str], ...] = ()
    init: Init = "normal"
    importance: ImportanceConfig = dataclasses.field(default_factory=ScalarGates)
    sigmoid: str = "leaky_hard"
    delta: bool = True
    warm_up: WarmUp | None = dataclasses.field(default_factory=WarmUp)
    losses: tuple[Loss, ...] = (ImportanceMinimality(), StochasticReconstruction(), StochasticLayerwise())
    compare: Compare = "mse"
    sampling: Sampling = "continuous"
    steps: int = 10_000
    batch: int = 4096
    """Rows of a batch (of a language model: sequences). Data of another size is refused."""
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    importance_schedule: Schedule | None = None
    """Of the importance function; None: the same."""
    clip: float | None = None
    """The largest norm of the gradient of V and U together."""
    importance_clip: float | None = None
    compute: Precision = "float32"
    """What forwards compute in, the target's and masked ones. V, U, Δ, faithfulness and the optimizer are float32."""
    remat: bool = False
    """Masked forwards are recomputed backward, which costs their time again and saves their memory."""
    seed: int = 0
    source: str = ""
    """Which published run this is and whether its YAML or its paper is followed: "yaml: ...", "paper: ..."."""

    def __post_init__(self) -> None:
        if not self.matrices:
            raise UserError('matrices=(): name at least one matrix, or "*" for all')
        if not self.C or min(self.C.values() if isinstance(self.C, dict) else [self.C]) < 1:
            raise UserError(f"C={self.C}: a matrix has at least 1 component")
        if self.sigmoid not in SIGMOIDS:
            raise UserError(f"sigmoid={self.sigmoid!r}: there are {', '.join(SIGMOIDS)}")
        if self.steps < 1 or self.batch < 1:
            raise UserError(f"steps={self.steps}, batch={self.batch}: at least 1 each")
        if not self.losses:
            raise UserError("losses=(): a decomposition without a loss learns nothing")
        for name in ("clip", "importance_clip"):
            if (norm := getattr(self, name)) is not None and norm <= 0:
                raise UserError(f"{name}={norm}: a norm above 0, or None for no clipping")
