"""What the largest directions of variance say about the classes, without any fit to labels.

    view = principal_view(vectors, "blocks.2.resid_post")
    view.points, view.fractions, view.auroc

Two sets whose classes lie along different first components have no common direction that a probe of one could carry
over to the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.gather import Vectors
from jax_interp.probes.measures import auroc


@dataclasses.dataclass(frozen=True, eq=False)
class PrincipalView:
    """The activations of one site along their first principal components.

    Args:
      site: the address.
      points: the coordinates of each example.
      fractions: the share of the variance along each component.
      components: the unit vectors. The sign is such that the positive class is higher on average.
      auroc: of the coordinate along each component. The sign above uses the labels, so chance is a little above .5.
      positive: whether each example is positive.
      sets: the number of each example's set.
    """

    site: str
    points: Float[np.ndarray, "example component"]
    fractions: Float[np.ndarray, " component"]
    components: Float[np.ndarray, "component d"]
    auroc: Float[np.ndarray, " component"]
    positive: Bool[np.ndarray, " example"]
    sets: Int[np.ndarray, " example"]

    def to_json(self) -> dict[str, Any]:
        """All but the components."""
        arrays = {name: getattr(self, name).tolist() for name in ("points", "fractions", "auroc", "positive", "sets")}
        return {"site": self.site, **arrays}


def principal_view(
    on: Vectors | Mapping[str, Vectors], site: str, *, components: int = 2, rule: int = 0
) -> PrincipalView:
    """The first principal components of one set, or of several sets of which each was centred by itself.

    Args:
      on: the activations.
      site: the address.
      components: the number of components.
      rule: the number of the token rule.

    Raises:
      UserError: there is no such site, a set has other than two classes, or there are fewer examples than components.
    """
    sets = {on.data.name: on} if isinstance(on, Vectors) else dict(on)
    for name, one in sets.items():
        if site not in one.sites:
            raise UserError(f"{name} has no site {site!r}; it has {', '.join(one.sites)}")
        if len(one.data.classes) != 2:
            raise UserError(f"{name} has {len(one.data.classes)} classes: a view of true and false needs two")
    each = [np.asarray(one.values[site][rule], np.float64) for one in sets.values()]
    x = np.concatenate([values - values.mean(axis=0) for values in each])
    if not 1 <= components <= min(x.shape):
        raise UserError(f"{components} components of {x.shape[0]} examples in {x.shape[1]} dimensions: give fewer")
    positive = np.concatenate([one.data.labels == 1 for one in sets.values()])
    values, vectors = _largest(x, components)
    points = x @ vectors
    sign = np.where(points[positive].mean(axis=0) >= points[~positive].mean(axis=0), 1.0, -1.0)
    return PrincipalView(
        site,
        points * sign,
        values / max((x * x).sum(), np.finfo(np.float64).tiny),
        (vectors * sign).T,
        np.asarray(auroc((points * sign).T, positive)),
        positive,
        np.repeat(np.arange(len(each)), [len(values) for values in each]),
    )


def _largest(x: Float[np.ndarray, "row d"], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of XᵀX and their eigenvectors, from the smaller of XᵀX and XXᵀ."""
    wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, vectors = np.maximum(values[::-1][:count], 0), vectors[:, ::-1][:, :count]
    if wide:
        vectors = x.T @ vectors / np.maximum(np.sqrt(values), np.finfo(np.float64).tiny)
    return values, vectors
