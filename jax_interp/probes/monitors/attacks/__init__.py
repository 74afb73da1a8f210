"""Attacks of a red team: ways to change an input so that an objective falls. One file each, registered."""

from jax_interp.core.registry import discover
from jax_interp.probes.monitors.attacks.attack import ATTACKS, Attack, Attacked, Objective, attack, token_table
from jax_interp.probes.monitors.attacks.embedding import EmbeddingAttack
from jax_interp.probes.monitors.attacks.greedy_coordinate import GreedyCoordinate
from jax_interp.probes.monitors.attacks.random_tokens import RandomTokens

discover(__name__, __path__)

__all__ = [
    "ATTACKS",
    "Attack",
    "Attacked",
    "EmbeddingAttack",
    "GreedyCoordinate",
    "Objective",
    "RandomTokens",
    "attack",
    "token_table",
]
