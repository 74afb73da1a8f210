"""`Directions`: what `find_directions` finds, and steering vectors from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.probes.token_rules import TokenRule
from jax_interp.steering.finding.method import DirectionMethod
from jax_interp.steering.vector import SteeringVector

AXES = ("site", "rule", "method")


@dataclasses.dataclass(frozen=True, eq=False)
class Directions:
    """Directions at all sites, for all token rules and methods. They point to the second class.

    Args:
      vectors: the directions.
      norms: the mean norm of the values at the tokens that were read: ‖h‖.
      sites: the addresses.
      rules: the token rules.
      methods: the methods.
      data: the name of the texts.
      counts: the number of texts of each class.
      pairs: the number of contrast pairs; 0 if the texts are not paired.
    """

    vectors: Float[np.ndarray, "site rule method d"]
    norms: Float[np.ndarray, "site rule"]
    sites: tuple[str, ...]
    rules: tuple[TokenRule, ...]
    methods: tuple[DirectionMethod, ...]
    data: str
    counts: Mapping[str, int]
    pairs: int

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """The names of the entries of each axis."""
        return {"site": self.sites, "rule": tuple(map(str, self.rules)), "method": tuple(map(str, self.methods))}

    @property
    def relative_norms(self) -> Labelled:
        """‖v‖/‖h‖, `[site, rule, method]`: how long a vector is, compared with the values that it is added to."""
        length = np.linalg.norm(self.vectors.astype(np.float64), axis=-1)
        return Labelled(length / self.norms[:, :, None], self.axes, "‖v‖/‖h‖")

    def agreement(self) -> Labelled:
        """The cosine between the directions of each two methods, `[site, rule, method, other]`. NaN for a direction of
        length 0."""
        v = self.vectors.astype(np.float64)
        length = np.linalg.norm(v, axis=-1, keepdims=True)
        v = v / np.where(length == 0, np.nan, length)
        axes = {**self.axes, "other": self.axes["method"]}
        return Labelled(np.einsum("srmd,srnd->srmn", v, v), axes, "cosine")

    def vector(
        self,
        *,
        method: str | DirectionMethod | None = None,
        rule: str | TokenRule | None = None,
        sites: str | Sequence[str] | None = None,
        length: Literal["own", "unit", "relative"] = "own",
    ) -> SteeringVector:
        """The steering vector of one method and one rule.

        Args:
          method: the method, or its name. It need not be given if there is one.
          rule: the token rule, or its name. It need not be given if there is one.
          sites: the addresses of the vector. None: all.
          length: "own": the length that the method gives. "unit": 1. "relative": the mean norm of the values that were
            read at the site, so that a strength of 0.1 adds a tenth of this norm.

        Raises:
          UserError: there is no such entry, an axis with several entries was not named, or the direction has length 0
            at one of the sites.

        Example:
            directions.vector(method="mean difference", rule="choice", sites="blocks.5.resid_post")
        """
        names = self.sites if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
        at = (self._index("rule", rule), self._index("method", method))
        found = {}
        for name in names:
            row = self._index("site", name)
            v = self.vectors[(row, *at)].astype(np.float64)
            norm = float(np.linalg.norm(v))
            if norm == 0:
                raise UserError(
                    f"the direction of {self.axes['method'][at[1]]} at {name} has length 0: both classes have the same "
                    f"values at the tokens of the rule {self.axes['rule'][at[0]]}. Choose other sites or tokens"
                )
            factor = {"own": 1.0, "unit": 1 / norm, "relative": float(self.norms[row, at[0]]) / norm}
            if length not in factor:
                raise UserError(f"no length {length!r}: there are {', '.join(map(repr, factor))}")
            found[name] = jnp.asarray(v * factor[length], jnp.float32)
        return SteeringVector(found)

    def _index(self, axis: str, label: Any) -> int:
        """The number of an entry."""
        labels = self.axes[axis]
        if label is None and len(labels) == 1:
            return 0
        if label is None:
            raise UserError(f"name one {axis}: there are {', '.join(map(repr, labels))}")
        if str(label) not in labels:
            raise UserError(f"no {axis} {str(label)!r}: there are {', '.join(map(repr, labels))}")
        return labels.index(str(label))

    def describe(self) -> str:
        """One line for a person: from what the directions were found, and where."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        pairs = f" in {self.pairs} pairs" if self.pairs else ""
        axes = "; ".join(f"{name}: {', '.join(labels)}" for name, labels in self.axes.items() if name != "site")
        return f"{self.data}: {counts}{pairs}; {len(self.sites)} sites; {axes}"
