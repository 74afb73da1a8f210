"""The config of the demo: the dictionary that it trains, the token that it examines, and the prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.training.config import CrossLayerConfig
from jax_interp.recipes.demo.patching import PromptPair
from jax_interp.recipes.dictionary import DictionaryRunConfig


@dataclass(frozen=True)
class DemoConfig:
    """A run of the demo. `token` and the answers of the pairs must be single tokens of the model's tokenizer."""

    dictionary: DictionaryRunConfig = field(default_factory=DictionaryRunConfig)
    opening: str = "class Queue:\n"
    """A text that the model continues first, to show what it can do."""
    token: str = "self"
    """The demo looks for features that fire on this token."""
    prompt: str = "def main("
    """The model continues this prompt while a feature is ablated or clamped. The feature is the one whose ablation
    changes the predictions on prompt and continuation most."""
    new_tokens: int = 48
    """The number of tokens written after a prompt."""
    search_sequences: int = 128
    """The number of training sequences to search for features and their contexts."""
    shown_features: int = 4
    """The number of features that fire on `token` on the page."""
    searched_features: int = 60
    """The number of features that matter for the prompt on the page, where they can be searched."""
    contexts: int = 8
    """The number of contexts shown for each feature."""
    strength: float = 1.0
    """The feature is clamped to this multiple of its largest activation."""
    pairs: tuple[PromptPair, ...] = ()
    """Pairs of prompts. The first pair that the model gets right is patched."""

    def __post_init__(self) -> None:
        for name in ("new_tokens", "search_sequences", "shown_features", "searched_features", "contexts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.pairs:
            raise UserError("the demo needs at least one pair of prompts to patch: pairs=(PromptPair(...),)")
        trained = self.dictionary.dictionary
        if len(trained.reads) > 1 or trained.writes is not None or isinstance(trained, CrossLayerConfig):
            raise UserError("the demo needs an SAE of one value: one address, and writes=None")
