"""`fit_probes`: one program that fits a probe for each site, token rule, label, split, strength and seed.

vectors = gather(model, data, "blocks.*.resid_post")
fitted = fit_probes(Logistic(C=(0.1, 1.0)), vectors, train=split.train)
fitted.scores(vectors)                    Labelled [site, rule, labels, split, strength, seed, example]
probe = fitted.probe(site="blocks.2.resid_post", strength=1.0)
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.probes.fit_checks import check_finite, check_fit, check_found, example_weights, warn_of_inexact
from jax_interp.probes.fit_inputs import check_widths, labels_and_weights, on_device, padded, rows_of
from jax_interp.probes.fitted import AXES, FittedProbes, rules_of
from jax_interp.probes.gather import Sequences, Vectors
from jax_interp.probes.kind import Kind, Solved
from jax_interp.training.placement import automatic, on_mesh

OWN = "own"
"""The name of the labels that the examples have themselves."""

__all__ = ["AXES", "OWN", "FittedProbes", "fit_probes"]


def fit_probes(
    kind: Kind,
    on: Vectors | Sequences,
    *,
    train: Bool[np.ndarray, "*split example"] | None = None,
    labels: Mapping[str, Int[np.ndarray, " example"]] | None = None,
    weight: Float[np.ndarray, " example"] | None = None,
    seeds: Sequence[int] = (0,),
    at_once: int = 1,
    place: Mesh | None = None,
) -> FittedProbes:
    """Fit one probe for each site, token rule, set of labels, split, strength and seed, in one program.

    The activations stay on the host. Those of `at_once` sites and rules at a time are on the device, and the program
    that fits them is compiled once. On a mesh their examples are split over its row axes; a sum over examples is
    then one over devices, and the probes are those of one device up to rounding.

    Args:
      kind: how the probes are found.
      on: the activations: `Vectors`, or `Sequences` for kinds that read tokens.
      train: the examples to fit on, one row for each split. None: all.
      labels: sets of labels by name, in place of the examples' own (several concepts, shuffled labels).
      weight: the weight of each example. None: 1.
      seeds: a probe is fitted for each seed.
      at_once: the number of sites (times rules) that are fitted side by side. More of them use an accelerator better,
        and need as many times the memory.
      place: a mesh. None: one device.

    Returns:
      The probes. Their arrays are on one device.

    Raises:
      UserError: the kind does not fit the activations or the labels, a split has examples of one class only, there are
        no pairs, an activation in use is not finite, or the problem has no finite solution.

    Warns:
      InexactProbeWarning: a descent ended before the optimum. The warning has the largest gradient.
    """
    data = on.data
    targets = {OWN: data.labels} if labels is None else {name: np.asarray(of) for name, of in labels.items()}
    splits = np.ones((1, len(data)), bool) if train is None else np.atleast_2d(np.asarray(train, bool))
    each = example_weights(weight, len(data))
    check_fit(kind, on, targets, splits & (each > 0) if splits.shape[1:] == each.shape else splits, seeds)
    kind.check(on, splits, labels is None)
    check_finite(on, np.any(splits * each, axis=0))
    check_widths(on)
    if at_once < 1:
        raise UserError(f"at_once={at_once} must be at least 1")
    axes = {
        "site": on.sites,
        "rule": rules_of(on),
        "labels": tuple(targets),
        "split": tuple(range(len(splits))),
        "strength": kind.strengths or (None,),
        "seed": tuple(seeds),
    }
    y, weights = labels_and_weights(kind, on, np.stack(list(targets.values())), splits * each)
    places = list(itertools.product(range(len(on.sites)), range(len(axes["rule"]))))
    with on_mesh(place) if place is not None else contextlib.nullcontext():
        found = _fit_places(kind, on, places, y, weights, seeds, min(at_once, len(places)), place)
    found = jax.tree.map(lambda a: jnp.asarray(a.reshape(len(on.sites), len(axes["rule"]), *a.shape[1:])), found)
    probes = found.probes if isinstance(found, Solved) else found
    check_found(kind, probes, on.sites)
    if isinstance(found, Solved):
        warn_of_inexact(kind, found, axes)
    return FittedProbes(kind, probes, axes, data.classes)


def _fit_places(
    kind: Kind,
    on: Vectors | Sequences,
    places: Sequence[tuple[int, int]],
    y: np.ndarray,
    weights: np.ndarray,
    seeds: Sequence[int],
    at_once: int,
    mesh: Mesh | None,
) -> Any:
    """What the kind finds at all places, on the host, with a leading axis for the places."""
    strengths = jnp.asarray(kind.strengths, jnp.float32) if kind.strengths else None
    keys = jax.vmap(jax.random.key)(jnp.asarray(list(seeds), jnp.uint32))
    of_labels, of_splits = on_device(y, mesh), on_device(padded(weights, mesh), mesh)
    parts = []
    for start in range(0, len(places), at_once):
        chunk = list(places[start : start + at_once])
        whole = chunk + [chunk[-1]] * (at_once - len(chunk))  # one program serves all chunks
        rows = on_device(rows_of(kind, on, whole, y[0], weights[0]), mesh)
        parts.append(to_host(_fit_chunk(kind, rows, of_labels, of_splits, strengths, keys)))
    return jax.tree.map(lambda *a: np.concatenate(a)[: len(places)], *parts)


@partial(jax.jit, static_argnums=0)
def _fit_chunk(kind: Kind, rows: Any, y: Array, weights: Array, strengths: Array | None, keys: Array) -> Any:
    def one(rows: Any, y: Array, weights: Array, strengths: Array | None, keys: Array) -> Any:
        return kind.fit_grid(rows, y, weights, strengths, keys)

    def every(rows: Any, y: Array, weights: Array, strengths: Array | None, keys: Array) -> Any:
        if jax.tree.leaves(rows)[0].shape[0] == 1:
            found = one(jax.tree.map(lambda a: a[0], rows), y, weights, strengths, keys)
            return jax.tree.map(lambda a: a[None], found)
        return jax.vmap(one, in_axes=(0, None, None, None, None))(rows, y, weights, strengths, keys)

    return automatic(every)(rows, y, weights, strengths, keys)
