"""The configs of a decomposition run and of its page."""

from __future__ import annotations

from dataclasses import dataclass, field

from jax_interp.core.errors import UserError
from jax_interp.decomposition.config import DecompositionConfig, MethodConfig
from jax_interp.recipes.decomposition.method import method_for
from jax_interp.recipes.feature_page import FeaturePageConfig

MAY_DIFFER = (
    "log_every", "checkpoint_every", "evaluate_rows", "linearity_rows", "adversary_steps", "threshold", "page"
)  # fmt: skip
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
    """Reduce the stream of a residual MLP to the directions that are used: the same function, ten times faster."""
    text: str = "stdlib"
    """Text for a language model: "stdlib", a UTF-8 file, a .jsonl or .parquet file, or a directory of them."""
    text_column: str = "text"
    """The column of .jsonl and .parquet files that holds the text."""
    context: int = 256
    """Tokens in each sequence."""
    evaluate_rows: int = 512
    """The number of examples (sequences, for a language model) that the decomposition is measured on."""
    linearity_rows: int = 64
    """The number of examples that linearity is measured on."""
    adversary_steps: tuple[int, ...] = (20, 40, 80, 160, 320)
    """The numbers of adversary steps to measure."""
    threshold: float = 0.0
    """In every figure, a component is important if its importance is above this. Use 0 if the sigmoid reaches 0."""
    page: FeaturePageConfig = field(default_factory=FeaturePageConfig)
    """The size of the page of components, for a language model. The components with the largest mean importance of each
    matrix are shown."""
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
    """The amount of content on the page of a decomposition."""

    components: int | None = None
    """The number of components for each matrix, the most important first. Default: 6, or 40 for a toy model."""
    windows: int = 6
    """The number of text windows for each component, for a language model."""
    sequences: int = 128
    """The number of held-out sequences to search for components and windows. A toy uses 100 times as many inputs."""

    def __post_init__(self) -> None:
        for name in ("components", "windows", "sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
