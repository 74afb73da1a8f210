"""What `fit_probes` refuses before and after a fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.probes.fit_inputs import pairs_of
from jax_interp.probes.gather import Sequences, Vectors
from jax_interp.probes.kind import Kind, Solved
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.probe import Probe


class InexactProbeWarning(UserWarning):
    """A descent ended before it reached the optimum."""


def check_fit(
    kind: Kind, on: Vectors | Sequences, targets: Mapping[str, np.ndarray], splits: np.ndarray, seeds: Sequence[int]
) -> None:
    """Raise UserError if a kind cannot be fitted on these activations and labels.

    Args:
      kind: the kind.
      on: the activations.
      targets: the labels by name.
      splits: the examples of each split with a weight above 0.
      seeds: the seeds.
    """
    data, name = on.data, type(kind).__name__
    if (kind.takes == "sequences") != isinstance(on, Sequences):
        needs = "one vector per token (gather_tokens)" if kind.takes == "sequences" else "one per example (gather)"
        raise UserError(f"{name} reads {needs}, and got {type(on).__name__}")
    if kind.takes == "pairs" and (data.pairs is None or not len(data.pairs)):
        raise UserError(f"{name} needs contrast pairs, and {data.name} has none")
    if splits.shape[1:] != (len(data),) or any(np.shape(of) != (len(data),) for of in targets.values()):
        raise UserError(f"train and labels must have one entry for each of the {len(data)} examples")
    if not seeds:
        raise UserError("give at least one seed")
    if not all(split.any() for split in splits):
        raise UserError(f"the training part of split {int(np.argmin(splits.any(axis=1)))} has no example")
    if kind.target == "number":
        if wrong := [label for label, of in targets.items() if not np.isfinite(np.asarray(of, np.float64)).all()]:
            raise UserError(f"the labels {wrong[0]!r} are not finite: leave these examples out")
        return
    for label, of in targets.items():
        if not np.issubdtype(np.asarray(of).dtype, np.integer):
            raise UserError(f"{name} tells classes apart, and the labels {label!r} are real numbers: use a regression")
        if kind.target == "binary" and not set(np.unique(of)) <= {0, 1}:
            raise UserError(f"{name} tells two classes apart; {label!r} has {', '.join(data.classes)}")
        for number, split in enumerate(splits):
            if len(np.unique(np.asarray(of)[split])) < 2:
                raise UserError(f"the training part of split {number} has examples of one class only ({label!r})")
            if kind.target == "classes":
                _check_classes(data.classes, np.asarray(of)[split], f"split {number} ({label!r})")
            if kind.takes == "pairs":
                _check_pairs(kind, data, np.asarray(of), split, number)


def _check_classes(classes: Sequence[str], labels: np.ndarray, where: str) -> None:
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(f"the labels of {where} must be numbers of the classes {', '.join(classes)}")
    if missing := [name for i, name in enumerate(classes) if i not in labels]:
        raise UserError(
            f"the training part of {where} has no example of the class {missing[0]!r}, so there is nothing to learn "
            "about it: leave the class out, or draw another split"
        )


def check_finite(on: Vectors | Sequences, used: np.ndarray) -> None:
    """Raise UserError if an activation of an example in use is not finite."""
    for site, x in on.values.items():
        rows = x[used][on.read[used]] if isinstance(on, Sequences) else x[:, used]
        if not np.isfinite(rows).all():
            raise UserError(f"{site} is not finite in an example that probes are fitted on: look for NaN in the model")


def check_found(kind: Kind, probes: Probe, sites: Sequence[str]) -> None:
    """Raise UserError if a fitted probe is not finite. The axis of sites is the first one."""
    for leaf in jax.tree.leaves(probes):
        finite = np.isfinite(np.asarray(leaf)).reshape(len(sites), -1).all(axis=1)
        if not finite.all():
            raise UserError(
                f"{type(kind).__name__} has no finite solution at {sites[int(np.argmin(finite))]}: look for values "
                "that are equal in all examples of a class, and for far larger ones than the others"
            )


def _check_pairs(kind: Kind, data: LabelledTokens, labels: np.ndarray, split: np.ndarray, number: int) -> None:
    pairs = pairs_of(data)
    whole = pairs[split[pairs].all(axis=1)]
    if not len(whole):
        raise UserError(f"the training part of split {number} has no whole pair: give each pair one group")
    if kind.centres_sides and len(found := np.unique(labels[whole[:, 0]])) < 2:
        raise UserError(
            f"{type(kind).__name__} centres each side of the pairs by itself, and the first examples of all pairs in "
            f"split {number} are of the class {data.classes[found[0]]!r}: that would remove what tells the classes "
            "apart. Order pairs by their form, such as (statement, negation), so that either one can be the true one"
        )


def example_weights(weight: np.ndarray | None, examples: int) -> np.ndarray:
    """The weight of each example; 1 if none are given. Raises UserError if one is negative or not finite."""
    if weight is None:
        return np.ones(examples, np.float32)
    each = np.asarray(weight, np.float32)
    if each.shape != (examples,) or not (np.isfinite(each) & (each >= 0)).all():
        raise UserError(f"weight must have one finite number, 0 or more, for each of the {examples} examples")
    return each


def warn_of_inexact(kind: Kind, found: Solved, axes: Mapping[str, Sequence[Any]]) -> None:
    """Warn of probes whose descent did not reach the optimum.

    Args:
      kind: the kind.
      found: what the descent reports, with all axes of fitted probes.
      axes: the labels of these axes.
    """
    converged, error = np.asarray(found.converged), np.asarray(found.error)
    if converged.all():
        return
    worst = np.unravel_index(np.argmax(np.where(converged, -1.0, np.nan_to_num(error, nan=np.inf))), error.shape)
    where = ", ".join(f"{name} {labels[i]!r}" for (name, labels), i in zip(axes.items(), map(int, worst), strict=True))
    warnings.warn(
        f"{type(kind).__name__}: {int((~converged).sum())} of {converged.size} probes are not at their optimum. The "
        f"farthest one ({where}) changed by {error[worst]:.1e} of its size in the last step, and the largest entry of "
        f"its gradient is {float(np.asarray(found.gradient)[worst]):.1e}. A stronger penalty or standardised columns "
        "make the optimum easier to reach",
        InexactProbeWarning,
        stacklevel=3,
    )
