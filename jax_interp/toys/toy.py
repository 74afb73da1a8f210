"""`Toy`, the base class that describes a kind of toy model, and `TOYS`, the registry of all toys.

A toy is one file. The file defines a model that keeps the contract of `jax_interp.surgery`, and registers a `Toy`:

    @TOYS.register
    class RingToy(Toy[Ring]):
        name = "ring"

        def example(self, key): ...
        def sample(self, model, key, batch): ...

The tests of all toys then include it (tests/toys/test_toy_laws.py). If it has `presets` and `target`, it is also a
target of `decompose`: `"ring:PRESET"`.
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
      name: the name of the toy in a target, such as `"tms"` in `"tms:5-2"`.
      presets: the names that `target` takes. Each name is one trained model. Empty if there is nothing to train.
    """

    name: ClassVar[str]
    presets: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def example(self, key: Key[Array, ""]) -> ToyModel:
        """A small model of this kind, which is made quickly. It is not trained."""

    @abc.abstractmethod
    def sample(self, model: ToyModel, key: Key[Array, ""], batch: int) -> Shaped[Array, "batch ..."]:
        """Inputs of the toy's task for `model`, with `batch` rows."""

    def target(self, preset: str, seed: int = 0) -> ToyModel:
        """The model of a preset, trained from `seed`, or read from the cache if it was trained before.

        Raises:
          UserError: the preset does not exist. The message lists all presets.
        """
        raise UserError(f"the toy {self.name!r} has no presets: make it by the functions of {type(self).__module__}")

    def collapse(self, model: ToyModel) -> ToyModel:
        """A smaller model that computes the same function, if the toy has one; otherwise the model itself."""
        return model


TOYS: Registry[Toy] = Registry("toy", Toy)
"""Every toy's class, by class name. `find_toy` finds one by its `name`."""


def find_toy(name: str) -> Toy:
    """The toy called `name`, such as "tms". If there is none, raises UserError with the nearest name."""
    toys = {kind.name: kind() for kind in TOYS}
    if name in toys:
        return toys[name]
    near = difflib.get_close_matches(name, toys, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else "."
    raise UserError(f"there is no toy {name!r}{hint} There are {', '.join(toys)}")


def target_forms() -> str:
    """The forms of targets that are trained toys, for messages: "tms:PRESET, resid-mlp:PRESET"."""
    return ", ".join(f"{kind.name}:PRESET" for kind in TOYS if kind.presets)


Pattern = Literal["identity", "dense"]


@dataclass(frozen=True)
class KnownFeatures:
    """The features of a toy, and what a decomposition should find.

    A feature is one entry of the toy's input. Matrices are named by address patterns: `blocks.*.mlp.up` matches every
    layer.
    """

    count: int
    """Number of features."""
    patterns: Mapping[str, Pattern]
    """The expected importances on one-hot inputs. "identity": one component for each feature. "dense": as many
    components as the matrix has inputs, and every feature uses all of them."""
    parts: Mapping[str, tuple[Float[Array, "d_in feature"], Float[Array, "feature d_out"]]]
    """V and U of the matrices that are a sum of rank-one parts, one part for each feature."""
    directions: Mapping[str, Float[Array, "feature d_out"]] = field(default_factory=dict)
    """The directions of the features, by matrix. They are the rows of the matrix."""


@runtime_checkable
class HasKnownFeatures(Protocol):
    """A toy model that knows its features."""

    def known_features(self) -> KnownFeatures:
        """The features of the model, and what a decomposition should find."""
        ...


def known_features(model: Model) -> KnownFeatures | None:
    """The known features of a toy model, or None. TMS and residual MLPs have known features."""
    return model.known_features() if isinstance(model, HasKnownFeatures) else None
