"""What a method is that finds directions: a frozen config. Each method is one file of `methods/`.

@DIRECTION_METHODS.register
@dataclasses.dataclass(frozen=True)
class MyMethod(DirectionMethod):
    def directions(self, texts): ...

`find_directions` reads the texts once for all methods.
"""

from __future__ import annotations

import abc
import dataclasses
import re
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.probes.fit import fit_probes
from jax_interp.probes.gather import Vectors
from jax_interp.probes.kind import Kind
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.probe import LinearProbe
from jax_interp.probes.token_rules import TokenRule


@dataclasses.dataclass(frozen=True, eq=False)
class ReadTexts:
    """What one pass over the texts leaves. An example is read as the mean over the tokens of a rule.

    Args:
      data: the examples.
      sites: the addresses.
      rules: the token rules.
      means: the mean of the negative and of the positive class.
      norms: the mean norm of the values at the tokens that were read. (With several tokens, the mean of their norms.)
      rows: the vector of each example. None if no method needs them.
    """

    data: LabelledTokens
    sites: tuple[str, ...]
    rules: tuple[TokenRule, ...]
    means: Float[np.ndarray, "site rule 2 d"]
    norms: Float[np.ndarray, "site rule"]
    rows: Vectors | None = None

    @property
    def vectors(self) -> Vectors:
        """The vector of each example.

        Raises:
          UserError: they were not kept, since no method said that it needs them.
        """
        if self.rows is None:
            raise UserError(
                "the vectors of the examples were not kept: a method that reads them sets needs_rows = True"
            )
        return self.rows

    def towards(self, directions: Float[np.ndarray, "site rule d"]) -> Float[np.ndarray, "site rule d"]:
        """The directions with the sign that points from the mean of the negative class to that of the positive one."""
        along = np.einsum("srd,srd->sr", directions, self.means[:, :, 1] - self.means[:, :, 0])
        return np.where(along < 0, -1.0, 1.0)[:, :, None].astype(directions.dtype) * directions


class DirectionMethod(abc.ABC):
    """How a direction is found. The direction points from the negative class to the positive class."""

    needs_rows: ClassVar[bool] = True
    """Whether the method needs the vector of each example. False: the means of the classes are enough, and no
    activation is kept in memory."""
    needs_pairs: ClassVar[bool] = False
    """Whether the examples must be pairs."""

    @abc.abstractmethod
    def directions(self, texts: ReadTexts) -> Float[np.ndarray, "site rule d"]:
        """The direction at each site and for each token rule."""

    def __str__(self) -> str:
        """The name of the method in tables: the words of its class, and the settings that are not the default."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", type(self).__name__).split()
        assert dataclasses.is_dataclass(self)
        changed = [f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self) if _changed(self, f)]
        return " ".join([*(word if word.isupper() else word.lower() for word in words), *changed])


def _changed(method: DirectionMethod, field: dataclasses.Field) -> bool:
    return getattr(method, field.name) != field.default


DIRECTION_METHODS = Registry("method that finds directions", DirectionMethod)


def unit(directions: Float[np.ndarray, "... d"]) -> Float[np.ndarray, "... d"]:
    """The directions with length 1. A direction of length 0 stays 0."""
    length = np.linalg.norm(directions, axis=-1, keepdims=True)
    return directions / np.where(length == 0, 1.0, length)


def directions_of_probes(kind: Kind, vectors: Vectors) -> Float[np.ndarray, "site rule d"]:
    """The directions of the linear probes of a kind, with length 1.

    Raises:
      UserError: as in `fit_probes`.
    """
    probes = fit_probes(kind, vectors).probes
    assert isinstance(probes, LinearProbe)
    return unit(np.asarray(probes.weight, np.float64)[:, :, 0, 0, 0, 0])
