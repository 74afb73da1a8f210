"""Applying steering: at which tokens, from when to when, and for which prompts."""

from jax_interp.steering.applying.orthogonalise import orthogonalised, writes_of
from jax_interp.steering.applying.vector_files import SavedVectors, load_vectors, save_vectors
from jax_interp.steering.applying.windows import (
    AtPositions,
    Window,
    WithIds,
    after_marker,
    at_positions,
    first,
    from_position,
    from_prompt_end,
    generated,
    last_of_prompt,
    prompt,
    with_ids,
)

__all__ = [
    "AtPositions", "SavedVectors", "Window", "WithIds", "after_marker", "at_positions", "first", "from_position",
    "from_prompt_end", "generated", "last_of_prompt", "load_vectors", "orthogonalised", "prompt", "save_vectors",
    "with_ids", "writes_of",
]  # fmt: skip
