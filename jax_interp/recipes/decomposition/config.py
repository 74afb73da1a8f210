"""The configs of a decomposition run and of its page."""

from __future__ import annotations

from dataclasses import dataclass, field

from jax_interp.core.errors import UserError
from jax_interp.decomposition.config import DecompositionConfig, MethodConfig
from jax_interp.recipes.decomposition.method import method_for

MAY_DIFFER = ("log_every", "checkpoint_every", "evaluate_rows", "linearity_rows", "adversary_steps", "threshold")
"""Fields that may change between the calls that make up one run."""


@dataclass(frozen=True)
class DecompositionRunConfig:
    """A run of `decompose`."""

    decomposition: MethodConfig = field(default_factory=DecompositionConfig)
    target: str = "tms:5-2"
    """A toy, "tms:PRESET" or "resid-mlp:PRESET" (trained here and kept in a cache), or a language model for `load`."""
    target_seed: int = 0
    """Seed of the toy's training."""
    collapsed: bool = True
    """Keep only the directions of a residual MLP's stream that matter: the same function, ten times cheaper."""
    text: str = "stdlib"
    """Text for a language model: "stdlib", a UTF-8 file, or a directory of .txt, .py and .md files."""
    context: int = 256
    """Tokens in each sequence."""
    evaluate_rows: int = 512
    """Examples (of a language model: sequences) that the decomposition is measured on."""
    linearity_rows: int = 64
    """Examples that linearity is measured on."""
    adversary_steps: tuple[int, ...] = (20, 40, 80, 160, 320)
    """Numbers of steps of the adversary, each measured."""
    threshold: float = 0.0
    """Importances above it count as important in every figure. Use 0 for a sigmoid that reaches 0."""
    log_every: int = 100
    """Steps between two records of the log."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        for name in ("evaluate_rows", "linearity_rows", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.context < 2:
            raise UserError(f"context={self.context} leaves nothing to predict: it must be at least 2")
        if not self.adversary_steps or min(self.adversary_steps) < 1:
            raise UserError(f"adversary_steps={self.adversary_steps}: give one number or more, each at least 1")
        if not 0 <= self.threshold < 1:
            raise UserError(f"threshold={self.threshold} must be at least 0 and below 1, as importances go from 0 to 1")
        method_for(self.decomposition).check_config(self)


@dataclass(frozen=True)
class PageOptions:
    """How much of a decomposition its page shows."""

    components: int | None = None
    """Components of each matrix, the most important first. Default: 6, of a toy model 40."""
    windows: int = 6
    """Pieces of text for each component, of a language model."""
    sequences: int = 128
    """Held-out sequences in which components and windows are looked for (of a toy model: times a hundred inputs)."""

    def __post_init__(self) -> None:
        for name in ("components", "windows", "sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
