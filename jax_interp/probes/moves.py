"""`Moves`: the vectors that move activations from one class to the other along probes' directions, and their controls.

moves = moves_along({"logistic": fitted, "mass-mean": other}, vectors, train=split.train)
moves.of["logistic"]             [site, d]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.probes.fit import AXES, FittedProbes, fit_probes
from jax_interp.probes.gather import Vectors


@dataclasses.dataclass(frozen=True, eq=False)
class Moves:
    """Vectors that are added to activations, one for each site. They move the negative class to the positive one.

    Args:
      sites: the addresses.
      of: the vectors, by the name of the direction.
      controls: the names of those that are controls.
    """

    sites: tuple[str, ...]
    of: Mapping[str, Float[np.ndarray, "site d"]]
    controls: tuple[str, ...] = ()

    def __post_init__(self):
        for name, vectors in self.of.items():
            if np.ndim(vectors) != 2 or len(vectors) != len(self.sites):
                raise UserError(f"the move {name!r} has shape {np.shape(vectors)}: give one vector for each site")
            if not np.isfinite(vectors).all():
                raise UserError(f"the move {name!r} is not finite")

    def norms(self) -> dict[str, Float[np.ndarray, " site"]]:
        """The length of each vector."""
        return {name: np.linalg.norm(vectors, axis=1) for name, vectors in self.of.items()}


def moves_along(
    probes: Mapping[str, FittedProbes],
    vectors: Vectors,
    *,
    train: Bool[np.ndarray, " example"] | None = None,
    random: int = 1,
    shuffled: int = 1,
    orthogonal: int = 1,
    seed: int = 0,
) -> Moves:
    """Along each probe's direction, the vector that moves one class mean to the other, and control vectors.

        v = ((μ₊ - μ₋) · θ̂) θ̂

    Marks & Tegmark 2023 (arXiv:2310.06824). A control has, at each site, the length of the first probe's
    vector, so that it differs in direction only.

    Args:
      probes: fitted probes by name, with a direction. Each axis but `site` has one entry: `fitted.sel(strength=1.0)`.
      vectors: the activations that they were fitted on, of one token rule.
      train: the examples that class means are taken of. None: all.
      random: the number of random directions.
      shuffled: the number of probes of the first kind on random labels, of which each class has half.
      orthogonal: the number of random directions that are orthogonal to μ₊ - μ₋ and to all probes.
      seed: the seed of the controls.

    Raises:
      UserError: the probes read other sites, an axis has several entries, a direction is zero, there are not two
        classes, or the vectors have several token rules.
    """
    if not probes:
        raise UserError("give at least one probe")
    chosen = np.ones(len(vectors.data), bool) if train is None else np.asarray(train, bool)
    gap = class_gap(vectors, chosen)
    units = {name: _units(name, fitted, vectors.sites) for name, fitted in probes.items()}
    found = {name: np.sum(gap * unit, axis=1, keepdims=True) * unit for name, unit in units.items()}
    first, rng = next(iter(probes)), np.random.default_rng(seed)
    length = np.linalg.norm(found[first], axis=1, keepdims=True)
    controls: dict[str, np.ndarray] = {}
    for number in range(random):
        controls[_numbered("random", number, random)] = length * _normalised(rng.standard_normal(gap.shape))
    for number in range(orthogonal):
        inside = np.stack([gap, *units.values()], axis=-1)
        controls[_numbered("orthogonal", number, orthogonal)] = length * _normalised(_outside(inside, rng))
    for number in range(shuffled):
        unit = _shuffled_units(probes[first], vectors, chosen, rng)
        controls[_numbered("shuffled labels", number, shuffled)] = length * unit
    if clash := set(found) & set(controls):
        raise UserError(f"a probe has the name of a control, {sorted(clash)[0]!r}: choose another one")
    return Moves(vectors.sites, {**found, **controls}, tuple(controls))


def class_gap(vectors: Vectors, train: Bool[np.ndarray, " example"]) -> Float[np.ndarray, "site d"]:
    """μ₊ - μ₋ at each site, over the training examples.

    Raises:
      UserError: there are not two classes, or there are several token rules.
    """
    if len(vectors.rules) > 1:
        raise UserError(f"moves are for one token rule, and there are {', '.join(map(str, vectors.rules))}")
    labels = vectors.data.labels
    if not np.issubdtype(labels.dtype, np.integer) or len(vectors.data.classes) != 2:
        raise UserError(f"moves go from one class to another; {vectors.data.name} has {vectors.data.classes}")
    if train.shape != labels.shape or len(set(labels[train].tolist())) < 2:
        raise UserError("`train` needs one entry for each example, and examples of both classes")
    x = vectors.stacked()[:, 0].astype(np.float64)
    return x[:, train & (labels == 1)].mean(axis=1) - x[:, train & (labels == 0)].mean(axis=1)


def _units(name: str, fitted: FittedProbes, sites: tuple[str, ...]) -> Float[np.ndarray, "site d"]:
    """The unit direction of each site's probe."""
    if tuple(fitted.axes["site"]) != sites:
        raise UserError(f"the probes {name!r} read {fitted.axes['site']}, and the vectors are at {sites}")
    if several := [axis for axis in AXES if axis != "site" and len(fitted.axes[axis]) > 1]:
        raise UserError(f"the probes {name!r} have several entries of {several[0]}: choose one with `sel`")
    units = np.stack([np.asarray(fitted.probe(site=site).direction(), np.float64) for site in sites])
    if not np.isfinite(units).all() or not units.any(axis=1).all():
        raise UserError(f"a direction of {name!r} is zero or not finite: these probes have found nothing")
    return _normalised(units)


def _shuffled_units(
    fitted: FittedProbes, vectors: Vectors, train: np.ndarray, rng: np.random.Generator
) -> Float[np.ndarray, "site d"]:
    """The unit directions of probes on random labels. Half of each class gets each label: if the classes differ much, a
    plain shuffle finds a part of their difference by chance."""
    labels = vectors.data.labels.copy()
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(train & (vectors.data.labels == label)))
        labels[rows] = np.arange(len(rows)) % 2
    refitted = fit_probes(fitted.kind, vectors, train=train, labels={"shuffled": labels}, seeds=fitted.axes["seed"])
    return _units("shuffled labels", refitted.sel(strength=fitted.axes["strength"][0]), vectors.sites)


def _outside(inside: Float[np.ndarray, "site d k"], rng: np.random.Generator) -> Float[np.ndarray, "site d"]:
    """A random vector that is orthogonal to the columns, for each site."""
    if inside.shape[1] <= inside.shape[2]:
        raise UserError(f"no direction of {inside.shape[1]} is orthogonal to {inside.shape[2]} others: orthogonal=0")
    drawn = rng.standard_normal(inside.shape[:2])
    basis = np.linalg.qr(inside)[0]
    for _ in range(2):  # once more, against rounding
        drawn = drawn - np.einsum("sdk,sek,se->sd", basis, basis, drawn)
    return drawn


def _normalised(vectors: Float[np.ndarray, "site d"]) -> Float[np.ndarray, "site d"]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _numbered(name: str, number: int, of: int) -> str:
    return name if of == 1 else f"{name} {number}"
