"""The configs of decomposition runs: frozen dataclasses, which `core.config_json` writes and reads as JSON."""

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

    matrices: patterns that select the matrices to decompose.
    tied: pairs (name, twin) of a matrix and its transpose.
    steps: the number of training steps.
    batch: the number of rows in a batch (sequences, for a language model). Other batch sizes are an error.
    seed: the seed of the initial values and the data.
    source: the published run that this config reproduces.
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
    """Training of V and U before the run, by AdamW with faithfulness as the only loss."""

    steps: int = 200
    learning_rate: float = 0.01
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"WarmUp(steps={self.steps}): it must be at least 0. Use warm_up=None for no warm-up")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate over the run: a linear rise, then a decay.

    The rise takes the first w steps, which are the fraction `warm_up` of all steps. The first step has 1/w of the rate.
    (In the published code of APD and SPD the first step has a rate of 0.) The T other steps are t = 0 .. T-1. Their
    rate is multiplied by:

    "cosine": `f + (1 - f) ½ (1 + cos πt/(T-1))`, where f is the fraction `final`.
    "quarter_cosine": `cos ½πt/(T-1)` (SPD and APD 2025).
    "linear": a line from 1 to `final`.
    "constant": 1.
    """

    rate: float = 1e-3
    kind: Literal["constant", "cosine", "quarter_cosine", "linear"] = "cosine"
    final: float = 0.0
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if self.rate < 0 or not 0 <= self.warm_up < 1:
            raise UserError(f"Schedule(rate={self.rate}, warm_up={self.warm_up}): rate >= 0 and 0 <= warm_up < 1")


@METHODS.register
@dataclasses.dataclass(frozen=True)
class DecompositionConfig(MethodConfig):
    """A run of SPD or one of its successors.

    The defaults are the 2026 settings for TMS 5-2: a Δ component, a warm-up, an importance function with one MLP for
    each component, and stochastic losses.
    """

    matrices: tuple[str, ...] = ("linear1",)
    C: int | dict[str, int] = 20
    """The number of components of every matrix, or a number for each pattern. The first pattern that matches counts."""
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
    """The number of rows in a batch (sequences, for a language model). Other batch sizes are an error."""
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    importance_schedule: Schedule | None = None
    """The schedule of the importance function; None: the same as `schedule`."""
    clip: float | None = None
    """The gradient of V and U together is clipped to this norm; None: no clipping."""
    importance_clip: float | None = None
    """The gradient of the importance function is clipped to this norm; None: no clipping."""
    compute: Precision = "float32"
    """The dtype of all forward passes, the target's too. V, U, Δ, faithfulness and the optimizer use float32."""
    remat: bool = False
    """Recompute masked forward passes in the backward pass. This saves memory and takes more time."""
    seed: int = 0
    source: str = ""
    """The published run, and whether this config follows its YAML or the paper: "yaml: ...", "paper: ..."."""

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
