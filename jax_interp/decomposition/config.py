"""The configs of decomposition runs: frozen dataclasses, to JSON and back by `core.config_json`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.decomposition.components import Init
from jax_interp.decomposition.importance import ImportanceConfig, ScalarMLP
from jax_interp.decomposition.losses import (
    ImportanceMinimality,
    Loss,
    LossSettings,
    StochasticLayerwise,
    StochasticReconstruction,
)
from jax_interp.decomposition.losses.base import Compare, Precision
from jax_interp.decomposition.masks import Sampling
from jax_interp.decomposition.sigmoids import sigmoid_pair


class MethodConfig:
    """Base class of the configs of decomposition methods. A subclass is a frozen dataclass with at least these fields.

    matrices: patterns of the matrices that are decomposed.
    tied: pairs (name, twin) of a matrix and its transpose.
    steps: the number of training steps.
    batch: rows of a batch (for a language model, sequences). Data of another size is refused.
    seed: of the initial values and the data.
    source: the published run that this is.
    """

    matrices: tuple[str, ...]
    tied: tuple[tuple[str, str], ...]
    steps: int
    batch: int
    seed: int
    source: str


METHODS = Registry("decomposition method", MethodConfig)


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """AdamW on V and U with faithfulness as the only loss, before the run."""

    steps: int = 200
    learning_rate: float = 0.01
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"WarmUp(steps={self.steps}): at least 0; warm_up=None is a run without")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate over the run: a linear rise, then a decay.

    The rise takes the first w steps, the fraction `warm_up` of all; the first step has 1/w of the rate. (In the
    published code of APD and SPD the first step has a rate of 0.) The decay has t = 0 .. T-1:

    "cosine": `f + (1 - f) ½ (1 + cos πt/(T-1))` with f the fraction `final`.
    "quarter_cosine": `cos ½πt/(T-1)` (SPD and APD 2025).
    "linear": from 1 to `final`.
    "constant": no decay.
    """

    rate: float = 1e-3
    kind: Literal["constant", "cosine", "quarter_cosine", "linear"] = "cosine"
    final: float = 0.0
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if self.rate < 0 or not 0 <= self.warm_up < 1:
            raise UserError(f"Schedule(rate={self.rate}, warm_up={self.warm_up}): not below 0, and a fraction below 1")


@METHODS.register
@dataclasses.dataclass(frozen=True)
class DecompositionConfig(MethodConfig):
    """A run of SPD or one of its successors.

    The defaults are the recipe of 2026 for TMS 5-2: Δ, a warm-up, an MLP for each component as importance function,
    and stochastic losses.
    """

    matrices: tuple[str, ...] = ("linear1",)
    C: int | dict[str, int] = 20
    """Components of every matrix, or numbers by pattern, of which the first match counts."""
    tied: tuple[tuple[str, str], ...] = ()
    init: Init = "normal"
    """The initial V and U, see `decompose`."""
    importance: ImportanceConfig = dataclasses.field(default_factory=ScalarMLP)
    """The causal importance function."""
    sigmoid: str = "leaky_hard"
    """The name of a pair in `sigmoids.SIGMOIDS`."""
    delta: bool = True
    """Whether there is a Δ component."""
    warm_up: WarmUp | None = dataclasses.field(default_factory=WarmUp)
    losses: tuple[Loss, ...] = (ImportanceMinimality(), StochasticReconstruction(), StochasticLayerwise())
    compare: Compare = "mse"
    """How outputs are compared: "mse", or "kl" for logits."""
    sampling: Sampling = "continuous"
    """The distribution of stochastic masks."""
    steps: int = 10_000
    batch: int = 4096
    """Rows of a batch (for a language model, sequences). Data of another size is refused."""
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    importance_schedule: Schedule | None = None
    """The schedule of the importance function; None: the same."""
    clip: float | None = None
    """The largest norm of the gradient of V and U together."""
    importance_clip: float | None = None
    """The largest norm of the gradient of the importance function."""
    compute: Precision = "float32"
    """The dtype of all forward passes. V, U, Δ, faithfulness and the optimizer use float32."""
    remat: bool = False
    """Recompute masked forward passes in the backward pass: it costs their time again and saves their memory."""
    seed: int = 0
    source: str = ""
    """Which published run this is, and whether it follows the run's YAML or the paper: "yaml: ...", "paper: ..."."""

    def __post_init__(self) -> None:
        if not self.matrices:
            raise UserError('matrices=(): name at least one matrix, or "*" for all')
        if not self.C or min(self.C.values() if isinstance(self.C, dict) else [self.C]) < 1:
            raise UserError(f"C={self.C}: a matrix has at least 1 component")
        sigmoid_pair(self.sigmoid)
        if self.steps < 1 or self.batch < 1:
            raise UserError(f"steps={self.steps}, batch={self.batch}: at least 1 each")
        if not self.losses:
            raise UserError("losses=(): a decomposition without a loss learns nothing")
        for name in ("clip", "importance_clip"):
            if (norm := getattr(self, name)) is not None and norm <= 0:
                raise UserError(f"{name}={norm}: a norm above 0, or None for no clipping")

    @property
    def loss_settings(self) -> LossSettings:
        """The fields that losses use."""
        return LossSettings(self.delta, self.sampling, self.compare, self.remat, self.compute)
