"""What the demo does: the dictionary it trains, the token it looks for, the prompts it works on."""

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
    """The token whose features are looked for."""
    prompt: str = "self"
    """Ends in `token`. The model continues it while a feature is ablated or clamped."""
    new_tokens: int = 48
    """Tokens written after a prompt."""
    search_sequences: int = 128
    """Training sequences in which features and their contexts are looked for."""
    shown_features: int = 4
    """Features on the page."""
    contexts: int = 8
    """Contexts shown for each feature."""
    strength: float = 3.0
    """The feature is clamped to this multiple of its largest activation."""
    pairs: tuple[PromptPair, ...] = ()
    """The first pair that the model gets right is patched."""

    def __post_init__(self) -> None:
        for name in ("new_tokens", "search_sequences", "shown_features", "contexts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.pairs:
            raise UserError("the demo needs at least one pair of prompts to patch: pairs=(PromptPair(...),)")
        trained = self.dictionary.dictionary
        if len(trained.reads) > 1 or trained.writes is not None or isinstance(trained, CrossLayerConfig):
            raise UserError("the demo needs an SAE of one value: one address, and writes=None")
