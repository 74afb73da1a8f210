"""`from_activations`: activations that you have already, with their labels, as `gather` would return them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.class_numbers import joined_groups, numbered
from jax_interp.probes.gather import Vectors
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.token_rules import LAST


def from_activations(
    values: Float[ArrayLike, "example d"] | Mapping[str, Float[ArrayLike, "example d"]],
    labels: Sequence[Any],
    *,
    groups: Sequence[Any] | None = None,
    pairs: Int[np.ndarray, "pair 2"] | None = None,
    name: str = "activations",
) -> Vectors:
    """Make `Vectors` from arrays. The examples have no texts: each counts as one token, and no two are equal.

    Args:
      values: one vector for each example; or the vectors at each of several sites.
      labels: the label of each example, as in `tokenized`.
      groups: what leaks between examples. Examples of one group stay on one side of each split.
      pairs: the numbers of the two examples of each contrast pair.
      name: the name of the set in tables, and of the site if there is one array.

    Raises:
      UserError: shapes differ, or a label is missing.

    Example:
        fitted = fit_probes(MassMean(), from_activations(x, y))
    """
    arrays = values if isinstance(values, Mapping) else {name: values}
    at_sites = {site: np.asarray(x).astype(np.float32) for site, x in arrays.items()}
    n = len(labels)
    for site, x in at_sites.items():
        if x.ndim != 2 or len(x) != n:
            raise UserError(f"{site} has shape {x.shape}: give one vector for each of the {n} labels")
    if groups is not None and len(groups) != n:
        raise UserError(f"{name}: {n} examples need as many groups, not {len(groups)}")
    numbers, classes = numbered(name, list(np.asarray(labels)) if hasattr(labels, "shape") else labels)
    of_group = joined_groups(n, None if groups is None else map(str, groups))
    tokens, mask = np.arange(n, dtype=np.int32)[:, None], np.ones((n, 1), bool)
    data = LabelledTokens(name, tokens, mask, mask, numbers, classes, of_group, pairs=pairs)
    return Vectors(data, (LAST,), {site: x[None] for site, x in at_sites.items()})
