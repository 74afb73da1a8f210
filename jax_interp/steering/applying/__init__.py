"""Applying steering: at which tokens, from when to when, and for which prompts."""

from jax_interp.steering.applying.condition_points import (
    Agreement,
    ConditionPoint,
    chosen_point,
    published_point,
    similarities,
)
from jax_interp.steering.applying.conditions import (
    Condition,
    Conditional,
    ProbeCondition,
    RowGate,
    Similarity,
    conditional,
    conditional_in_one_pass,
)
from jax_interp.steering.applying.orthogonalise import orthogonalised, writes_of
from jax_interp.steering.applying.schedules import exponential_decay, linear_decay, schedule, until_chosen
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
    "Agreement", "AtPositions", "Condition", "ConditionPoint", "Conditional", "ProbeCondition", "RowGate",
    "SavedVectors", "Similarity", "Window", "WithIds", "after_marker", "at_positions", "chosen_point",
    "conditional", "conditional_in_one_pass", "exponential_decay", "first", "from_position", "from_prompt_end",
    "generated", "last_of_prompt", "linear_decay", "load_vectors", "orthogonalised", "prompt", "published_point",
    "save_vectors", "schedule", "similarities", "until_chosen", "with_ids", "writes_of",
]  # fmt: skip
