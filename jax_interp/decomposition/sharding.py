"""Sharding rules for V and U on a mesh, made from the rules of the target (see `jax_interp.training.sharding`).

    train_decomposition(config, model, batch_at=batch_at, place=make_mesh(data=2, tensor=2))

The trainers place the state by `state_rules`. Your own rules go before them:

    with jax.set_mesh(mesh):
        place = lambda state: shard(state, (*my_rules, *state_rules(state, target)), mesh)
        train_decomposition(config, shard(model, target, mesh), batch_at=batch_at, place=place)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from jax.sharding import PartitionSpec as P

from jax_interp.core.errors import UserError
from jax_interp.decomposition.components import Components, Decomposed
from jax_interp.training.sharding import Rules, matches


class HasComponents(Protocol):
    """A training state of any decomposition method."""

    @property
    def components(self) -> dict[str, Components]: ...


def rules(model: Decomposed, target: Rules) -> Rules:
    """The rules of a decomposed model: rules for V, U and their optimizer moments, then the rules of the target.

    The inputs and outputs of a matrix are split like those of its weight. If the inputs are not split over `tensor`,
    the components are. Importance functions have no rule here. To replicate them, add `("**", P())` as the last rule.

    Args:
      model: the decomposed model.
      target: the target's rules.

    Raises:
      UserError: no rule of the target matches a decomposed matrix.
    """
    return [*_of_components(model.components, target), *target]


def state_rules(state: HasComponents, target: Rules) -> Rules:
    """The rules of a training state: V, U and their moments as in `rules`; everything else is replicated.

    To override a rule, put your own rules before these.

    Args:
      state: the training state.
      target: the target's rules.
    """
    return [*_of_components(state.components, target), ("**", P())]


def _of_components(components: Mapping[str, Components], target: Rules) -> list[tuple[str, P]]:
    return [(f"{name}.{part}", spec) for name in components for part, spec in _split(name, target)]


def _split(name: str, target: Rules) -> list[tuple[str, P]]:
    for pattern, spec in target:
        if matches(pattern, f"{name}.weight"):
            reads, writes = [_axes(entry) for entry in (None, None, *spec)[-2:]]  # a spec describes the last axes
            inner = () if "tensor" in reads else ("tensor",)
            kept = tuple(axis for axis in writes if axis not in inner)
            return [("V", P(reads or None, inner or None)), ("U", P(inner or None, kept or None))]
    raise UserError(f"no rule of the target matches {name}.weight, so V and U have none either")


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that one axis of an array is split over."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
