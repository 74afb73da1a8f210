"""What the demo does: the dictionary it trains, the token it looks for, the prompts it works on."""

from __future__ import annotations

from dataclasses import dataclass, field

from jax_interp.circuits.patching import Pair
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.training.config import CrossLayerConfig
from jax_interp.recipes.dictionary import DictionaryRunConfig


@dataclass(frozen=True)
class DemoConfig:
    """The demo. Its text is cut into tokens by the model's tokenizer: `token` and the answers are single tokens."""

    dictionary: DictionaryRunConfig = field(default_factory=DictionaryRunConfig)
    opening: str = "class Queue:\n"
    """Continued first, to show what the model can do."""
    token: str = "self"
    """Features are sought that tell this token apart."""
    prompt: str = "self"
    """Ends in `token`; continued while a feature is ablated or held high."""
    new_tokens: int = 48
    """Written after a prompt."""
    search_sequences: int = 128
    """Training sequences in which features and their contexts are sought."""
    shown_features: int = 4
    contexts: int = 8
    """Shown for each feature."""
    strength: float = 3.0
    """The feature is held at this multiple of its largest activation found."""
    pairs: tuple[Pair, ...] = ()
    """The first pair that the model gets right is patched."""

    def __post_init__(self) -> None:
        for name in ("new_tokens", "search_sequences", "shown_features", "contexts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.pairs:
            raise UserError("the demo needs at least one pair of prompts to patch")
        trained = self.dictionary.dictionary
        if len(trained.reads) > 1 or trained.writes is not None or isinstance(trained, CrossLayerConfig):
            raise UserError("the demo shows an SAE of one value: one address, and writes=None")
