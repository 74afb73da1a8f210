"""`grouped_folds`: parts of a training set that share nothing that leaks.

A probe that was fitted without a fold scores it as it scores new examples.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.splits import leaking_groups


def grouped_folds(
    data: LabelledTokens,
    folds: int = 5,
    *,
    among: Bool[np.ndarray, " example"] | None = None,
    seed: int = 0,
) -> Int[np.ndarray, " example"]:
    """Divide examples into folds of similar size and similar shares of the classes. A group that leaks stays whole.

    Groups come in a random order, large ones first. Each one goes to the fold in which its classes are rarest so far.

    Args:
      data: the examples, with class labels.
      folds: the number of folds.
      among: the examples to divide. None: all.
      seed: the seed of the order.

    Returns:
      The number of the fold of each example; -1 for the others.

    Raises:
      UserError: there are fewer groups than folds, or all examples of a class are in one fold.
    """
    among = np.ones(len(data), bool) if among is None else np.asarray(among, bool)
    if among.shape != (len(data),):
        raise UserError(f"among has shape {among.shape}: give one entry for each of the {len(data)} examples")
    rows = np.flatnonzero(among)
    groups = np.unique(leaking_groups(data)[rows], return_inverse=True)[1]
    labels = np.unique(np.asarray(data.labels)[rows], return_inverse=True)[1]
    count = int(groups.max(initial=-1)) + 1
    if not 2 <= folds <= count:
        raise UserError(
            f"{count} groups of examples cannot be divided into {folds} folds: give at least 2 folds, and no more than "
            "there are groups"
        )
    counts = np.zeros((count, labels.max() + 1))
    np.add.at(counts, (groups, labels), 1)
    share = counts / counts.sum(axis=0)[None, :]
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    held, of_group = np.zeros((folds, counts.shape[1])), np.zeros(len(counts), int)
    for group in order:
        of_group[group] = np.argmin(np.square(held + share[group]).sum(axis=1) - np.square(held).sum(axis=1))
        held[of_group[group]] += share[group]
    if (held.max(axis=0) > 1 - 1e-9).any():
        raise UserError(f"all examples of a class fall into one of {folds} folds: there are too few groups of it")
    found = np.full(len(data), -1)
    found[rows] = of_group[groups]
    return found
