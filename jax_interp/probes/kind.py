"""What a kind of probe is: a frozen config with one pure function `fit`. Each kind is one file of `kinds/`.

@KINDS.register
@dataclasses.dataclass(frozen=True)
class MyKind(Kind):
    takes = "rows"

    def fit(self, data, strength, key): return LinearProbe(...)

`fit_probes` compiles `fit` once for all sites, token rules, labels, splits, strengths and seeds.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.registry import Registry
from jax_interp.probes.probe import Probe


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """One vector for each example.

    Args:
      x: the vectors.
      y: the class of each row, or its target if the kind is a regression.
      weight: the weight of each row; 0 leaves the row out.
      classes: the number of classes.
    """

    x: Float[Array, "row d"]
    y: Int[Array, " row"] | Float[Array, " row"]
    weight: Float[Array, " row"]
    classes: int = dataclasses.field(default=2, metadata={"static": True})


@register_dataclass
@dataclasses.dataclass(frozen=True)
class PairRows:
    """Contrast pairs: the same question with two answers, or a statement and its negation.

    Args:
      first: the vector of the first example of each pair.
      second: the vector of the second example.
      y: the class of the first example. Kinds that need no labels use it for the sign only.
      weight: the weight of each pair; 0 leaves it out.
    """

    first: Float[Array, "pair d"]
    second: Float[Array, "pair d"]
    y: Int[Array, " pair"]
    weight: Float[Array, " pair"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SequenceRows:
    """One vector for each token of each example.

    Args:
      x: the vectors.
      read: the tokens that count.
      y: the class of each example.
      token_y: the class of each token, -1 where there is none. None: only examples have labels.
      weight: the weight of each example; 0 leaves it out.
    """

    x: Float[Array, "example pos d"]
    read: Bool[Array, "example pos"]
    y: Int[Array, " example"]
    token_y: Int[Array, "example pos"] | None
    weight: Float[Array, " example"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Solved:
    """Probes that a descent has found, and how exactly. `fit_grid` may return it, and `fit_probes` then warns of the
    probes that are not exact.

    Args:
      probes: the probes, with the axes of `fit_grid`.
      error: the estimated relative distance to the optimum.
      gradient: the largest entry of the gradient of the mean loss.
      converged: whether the error is small enough.
    """

    probes: Probe
    error: Float[Array, "labels split strength seed"]
    gradient: Float[Array, "labels split strength seed"]
    converged: Bool[Array, "labels split strength seed"]


class Kind(abc.ABC):
    """How a probe is found."""

    takes: ClassVar[Literal["rows", "pairs", "sequences"]] = "rows"
    """What `fit` gets: `Rows`, `PairRows` or `SequenceRows`."""
    target: ClassVar[Literal["binary", "classes", "number"]] = "binary"
    """What the labels are: two classes, any number of classes, or real numbers."""
    centres_sides: ClassVar[bool] = False
    """Whether each side of the pairs is centred by itself. The first examples must then be of both classes."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strengths of regularisation that are fitted side by side. (): the kind has none."""
        return ()

    def check(self, on: Any, splits: Bool[np.ndarray, "split example"], own_labels: bool) -> None:
        """Refuse what this kind cannot be fitted on. `fit_probes` calls it before anything is computed.

        Args:
          on: `Vectors`, or `Sequences` if the kind takes sequences.
          splits: the training examples of each split.
          own_labels: whether the labels are those of the examples. False: `fit_probes` got others.

        Raises:
          UserError: something is missing.
        """
        return

    @abc.abstractmethod
    def fit(self, data: Any, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> Probe:
        """Find one probe: a pure function, which is traced under `vmap`.

        Args:
          data: what `takes` says.
          strength: one of `strengths`; None if the kind has none.
          key: the key of the seed. A kind without randomness does not use it.
        """

    def fit_grid(
        self, data: Any, y: Array, weight: Array, strengths: Array | None, keys: Key[Array, " seed"]
    ) -> Probe | Solved:
        """Find the probes of one site for all labels, splits, strengths and seeds: axes in this order.

        A kind whose problems share work (a covariance, a factorisation) does it here.

        Args:
          data: what `takes` says. Its `y` and `weight` are replaced.
          y: the labels, `[labels, row]`.
          weight: the weights, `[split, row]`.
          strengths: `[strength]`; None if the kind has none.
          keys: the key of each seed.
        """

        def one(y: Array, weight: Array, strength: Array | None, key: Array) -> Probe:
            return self.fit(dataclasses.replace(data, y=y, weight=weight), strength, key)

        f = jax.vmap(one, in_axes=(None, None, None, 0))
        if strengths is not None:
            f = jax.vmap(f, in_axes=(None, None, 0, None))
        f = jax.vmap(f, in_axes=(None, 0, None, None))
        f = jax.vmap(f, in_axes=(0, None, None, None))
        probes = f(y, weight, strengths, keys)
        return probes if strengths is not None else jax.tree.map(lambda a: a[:, :, None], probes)


KINDS = Registry("kind of probe", Kind)
