"""Where V and U live on a mesh: rules beside those of the target (`jax_interp.training.sharding`).

with jax.set_mesh(mesh):
    place = lambda state: shard(state, state_rules(state, target), mesh)
    train_decomposition(config, shard(model, target, mesh), batch_at=batch_at, place=place)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.sharding import PartitionSpec as P

from jax_interp.core.errors import UserError
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.train import TrainState
from jax_interp.training.sharding import Rules, matches


def rules(model: Decomposed, target: Rules) -> Rules:
    """The rules of V and U, also in the optimizer's moments, and the target's after them: what a matrix reads and
    writes is split as its weight is, components over `tensor` where its inputs are not. Importance functions are the
    user's to place; `("**", P())` as a last rule replicates them.
    """
    return [*_of_components(model.components, target), *target]


def state_rules(state: TrainState, target: Rules) -> Rules:
    """The rules of a training state: V, U and their moments as `rules` has them, by those of the target. Importance
    functions and the sources of adversaries are on every device; a rule before these says otherwise.
    """
    return [*_of_components(state.components, target), ("**", P())]


def _of_components(components: Mapping[str, Any], target: Rules) -> list[tuple[str, P]]:
    return [(f"{name}.{part}", spec) for name in components for part, spec in _split(name, target)]


def _split(name: str, target: Rules) -> list[tuple[str, P]]:
    for pattern, spec in target:
        if matches(pattern, f"{name}.weight"):
            reads, writes = [_axes(entry) for entry in (None, None, *spec)[-2:]]  # a spec is of the last axes
            inner = () if "tensor" in reads else ("tensor",)
            kept = tuple(axis for axis in writes if axis not in inner)
            return [("V", P(reads or None, inner or None)), ("U", P(inner or None, kept or None))]
    raise UserError(f"no rule of the target decides {name}.weight, so none does V and U")


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that one axis of an array is split over."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
