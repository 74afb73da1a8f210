"""`Toy`: what a kind of toy model says about itself, and `TOYS`, the registry of all of them.

A toy is one file. It defines a model that keeps the contract of `jax_interp.surgery`, and registers a `Toy` for it:

    @TOYS.register
    class RingToy(Toy[Ring]):
        name = "ring"

        def example(self, key): ...
        def sample(self, model, key, batch): ...

It then takes part in the laws of all toys (tests/toys/test_toy_laws.py). With `presets` and `target` it is a target of
`decompose` too: `"ring:PRESET"`.
"""

from __future__ import annotations

import abc
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

from jaxtyping import Array, Float, Key, Shaped

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.surgery import Model

ToyModel = TypeVar("ToyModel", bound=Model)


class Toy(abc.ABC, Generic[ToyModel]):
    """One kind of toy model.

    Attributes:
      name: what the toy is called in a target, `"tms"` in `"tms:5-2"`.
      presets: the names that `target` takes, each one trained model; none where there is nothing to train.
    """

    name: ClassVar[str]
    presets: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def example(self, key: Key[Array, ""]) -> ToyModel:
        """A small model of this kind, made in a moment: untrained where the toy is trained."""

    @abc.abstractmethod
    def sample(self, model: ToyModel, key: Key[Array, ""], batch: int) -> Shaped[Array, "batch ..."]:
        """Inputs of the toy's task, `batch` rows of what `model` takes."""

    def target(self, preset: str, seed: int = 0) -> ToyModel:
        """The model of a preset, trained from `seed`, or read from the cache where it was trained before.

        Raises:
          UserError: there is no such preset. The message lists those there are.
        """
        raise UserError(f"the toy {self.name!r} has no presets: make it by the functions of {type(self).__module__}")

    def collapse(self, model: ToyModel) -> ToyModel:
        """The same function as a smaller model where the toy has one; otherwise the model itself."""
        return model


TOYS: Registry[Toy] = Registry("toy", Toy)
"""Every toy's class, by class name. `find_toy` finds one by its `name`."""


def find_toy(name: str) -> Toy:
    """The toy called `name`, such as "tms". Raises UserError with the nearest name where there is none."""
    toys = {kind.name: kind() for kind in TOYS}
    if name in toys:
        return toys[name]
    near = difflib.get_close_matches(name, toys, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else "."
    raise UserError(f"there is no toy {name!r}{hint} There are {', '.join(toys)}")


def target_forms() -> str:
    """The targets that are trained toys, for messages: "tms:PRESET, resid-mlp:PRESET"."""
    return ", ".join(f"{kind.name}:PRESET" for kind in TOYS if kind.presets)


Pattern = Literal["identity", "dense"]


@dataclass(frozen=True)
class KnownFeatures:
    """The features of a toy, and what a decomposition should find.

    A feature is one entry of the toy's input. Matrices are named by address patterns: `blocks.*.mlp.up` is that of any
    layer.
    """

    count: int
    """Number of features."""
    patterns: Mapping[str, Pattern]
    """The importances expected on one-hot inputs. "identity": one component for each feature. "dense": as many
    components as the matrix has inputs, all used by every feature."""
    parts: Mapping[str, tuple[Float[Array, "d_in feature"], Float[Array, "feature d_out"]]]
    """V and U of the matrices that are sums of one rank-one part for each feature."""
    directions: Mapping[str, Float[Array, "feature d_out"]] = field(default_factory=dict)
    """The features' own directions, by the matrix whose rows they are."""


@runtime_checkable
class HasKnownFeatures(Protocol):
    """A toy model that knows its features."""

    def known_features(self) -> KnownFeatures:
        """Its features, and what a decomposition should find."""
        ...


def known_features(model: Model) -> KnownFeatures | None:
    """The known features of a toy model (TMS and residual MLPs have some), or None."""
    return model.known_features() if isinstance(model, HasKnownFeatures) else None
