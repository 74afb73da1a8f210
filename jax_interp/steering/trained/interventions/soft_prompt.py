"""Soft prompts: learned embeddings at the front of each text (Lester et al. 2021, arXiv:2104.08691).

    tokens, mask = reserved(tokens, mask, n)           n placeholders before each text
    generate(edit(model, *trained.edits()), tokens, 20, mask=mask)

The placeholders are real tokens: the model attends to them, gives them positions and caches them. The edit of `embed`
replaces their embeddings.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.trained.intervention import INTERVENTIONS, Intervention, InterventionConfig, Read, Value
from jax_interp.surgery import ValueTokens


@INTERVENTIONS.register
@dataclasses.dataclass(frozen=True)
class SoftPromptConfig(InterventionConfig):
    """Learned embeddings at the front. The address is "embed"."""

    length: int = 10
    """The number of embeddings."""
    std: float = 0.02
    """The standard deviation of the entries at the start."""

    def __post_init__(self) -> None:
        if self.length < 1 or not self.std >= 0:
            raise UserError(f"length={self.length} must be at least 1, and std={self.std} at least 0")

    @property
    def reserved(self) -> int:  # type: ignore[override]
        return self.length

    def init(self, key: Key[Array, ""], d: int) -> SoftPrompt:
        return SoftPrompt(self.std * jax.random.normal(key, (self.length, d), jnp.float32))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SoftPrompt(Intervention):
    """The embeddings at positions 0 to n - 1 become the learned ones.

    A strength between 0 and 1 mixes them with the embedding of the placeholder.

    Args:
      embeddings: one for each reserved position.
    """

    embeddings: Float[Array, "n d"]

    def change(self, x: Value, tokens: ValueTokens, read: Read) -> Value:
        at = tokens.absolute(x)
        learned = jnp.take(self.embeddings, jnp.clip(at, 0, len(self.embeddings) - 1), axis=0)
        return jnp.where((at < len(self.embeddings))[..., None], learned - x, jnp.zeros_like(x))


def reserved(
    tokens: Int[np.ndarray, "batch pos"], mask: Bool[np.ndarray, "batch pos"] | None, n: int, placeholder: int = 0
) -> tuple[Int[np.ndarray, "batch pos+n"], Bool[np.ndarray, "batch pos+n"]]:
    """Texts with n placeholders before the first real token of each row.

    Args:
      tokens: the texts, padded on either side.
      mask: True for real tokens. None: all tokens are real.
      n: the number of placeholders.
      placeholder: their token id. Its embedding is replaced, so any id of the vocabulary will do.

    Returns:
      The tokens and the mask. A row has the padding that it had before.
    """
    tokens = np.asarray(tokens)
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask, bool)
    length = tokens.shape[1]
    first = np.argmax(mask, axis=1)[:, None]
    place = np.arange(length)[None, :] + np.where(np.arange(length)[None, :] < first, 0, n)
    longer = np.full((len(tokens), length + n), placeholder, tokens.dtype)
    real = np.ones(longer.shape, bool)
    np.put_along_axis(longer, place, tokens, axis=1)
    np.put_along_axis(real, place, mask, axis=1)
    return longer, real
