"""`FittedProbes`: probes of one kind for all sites, token rules, labels, splits, strengths and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.probes.gather import Sequences, Vectors
from jax_interp.probes.kind import Kind
from jax_interp.probes.probe import Probe

AXES = ("site", "rule", "labels", "split", "strength", "seed")
"""The axes of fitted probes."""


@dataclasses.dataclass(frozen=True, eq=False)
class FittedProbes:
    """Probes of one kind, on all axes of `AXES`. `fit_probes` makes them.

    Args:
      kind: how they were found.
      probes: one pytree. Each array begins with the six axes.
      axes: the labels of the entries of each axis.
      classes: the names of the classes. The second one is the positive class.
    """

    kind: Kind
    probes: Probe
    axes: Mapping[str, tuple[Any, ...]]
    classes: tuple[str, ...]

    def sel(self, **labels: Any) -> FittedProbes:
        """Keep one entry of some axes, by label. The axes stay, with one entry.

        Raises:
          UserError: there is no such axis or label.
        """
        index, axes = [slice(None)] * len(AXES), dict(self.axes)
        for name, label in labels.items():
            if name not in AXES:
                raise UserError(f"fitted probes have no axis {name!r}; their axes are {', '.join(AXES)}")
            if label not in axes[name]:
                raise UserError(f"no {name} {label!r}; there are {', '.join(map(repr, axes[name]))}")
            at = axes[name].index(label)
            index[AXES.index(name)], axes[name] = slice(at, at + 1), (label,)
        return dataclasses.replace(self, probes=jax.tree.map(lambda a: a[tuple(index)], self.probes), axes=axes)

    def probe(self, **labels: Any) -> Probe:
        """One probe. Axes with one entry need not be named.

        Raises:
          UserError: an axis with several entries was not named, or there is no such entry.
        """
        found = self.sel(**labels)
        if open_axes := [name for name in AXES if len(found.axes[name]) > 1]:
            of = "; ".join(f"{name}: {', '.join(map(repr, found.axes[name]))}" for name in open_axes)
            raise UserError(f"name one entry of each axis with several ({of})")
        return jax.tree.map(lambda a: a[(0,) * len(AXES)], found.probes)

    def scores(self, on: Vectors | Sequences) -> Labelled:
        """The score of each example: `[site, rule, labels, split, strength, seed, example]`.

        Probes of several classes have one more axis, `class`. Activations of one site and rule at a time are on the
        device.

        Args:
          on: activations at the sites (and token rules) that the probes were fitted on.

        Raises:
          UserError: a site or a rule is missing, or activations have another width than those of the fit.
        """
        for what, asked, exist in (("site", self.axes["site"], on.sites), ("rule", self.axes["rule"], rules_of(on))):
            if missing := [name for name in asked if name not in exist]:
                raise UserError(f"the probes read the {what} {missing[0]!r}; these activations have {', '.join(exist)}")
        found = [
            [self._scores_at(on, i, j) for j in range(len(self.axes["rule"]))] for i in range(len(self.axes["site"]))
        ]
        values = np.asarray(found)
        axes = {**self.axes, "example": range(len(on.data))}
        return Labelled(values, axes if values.ndim == len(axes) else {**axes, "class": self.classes}, "score")

    def _scores_at(self, on: Vectors | Sequences, i: int, j: int) -> np.ndarray:
        """The scores at one site and rule: `[labels, split, strength, seed, example]`."""
        x = np.asarray(on.values[self.axes["site"][i]])
        read = None
        if isinstance(on, Sequences):
            read = jnp.asarray(on.read)
        else:
            x = x[rules_of(on).index(self.axes["rule"][j])]
        probes = jax.tree.map(lambda a: a[i, j], self.probes)
        return np.asarray(_scores(probes, jnp.asarray(x), read))


@jax.jit
def _scores(probes: Probe, x: Array, read: Array | None) -> Array:
    def score(probe: Probe, x: Array) -> Array:
        return probe.score(x) if read is None else probe.score(x, read)

    for _ in range(4):
        score = jax.vmap(score, in_axes=(0, None))
    return score(probes, x)


def rules_of(on: Vectors | Sequences) -> tuple[str, ...]:
    """The names of the token rules of activations."""
    return tuple(map(str, on.rules)) if isinstance(on, Vectors) else (str(on.rule),)
