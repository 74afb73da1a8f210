"""Where V and U live on a mesh: rules beside those of the target (`jax_interp.training.sharding`)."""

from __future__ import annotations

from jax.sharding import PartitionSpec as P

from jax_interp.decomposition.components import Decomposed
from jax_interp.errors import UserError
from jax_interp.training.sharding import Rules, matches


def rules(model: Decomposed, target: Rules) -> Rules:
    """The target's rules, and those of V and U after them: what a matrix reads and writes is split as its weight is,
    components over `tensor` where its inputs are not. Importance functions are the user's to place; `("**", P())` as a
    last rule replicates them.
    """
    found = [(f"components.{name}.{part}", spec) for name in model.components for part, spec in _split(name, target)]
    return [*found, *target]


def _split(name: str, target: Rules) -> list[tuple[str, P]]:
    for pattern, spec in target:
        if matches(pattern, f"{name}.weight"):
            reads, writes = spec[-2], spec[-1]
            inner = None if reads == "tensor" else "tensor"
            return [("V", P(reads, inner)), ("U", P(inner, None if writes == inner else writes))]
    raise UserError(f"no rule of the target decides {name}.weight, so none does V and U")
