"""Circuits of one behaviour in several bases, side by side at equal faithfulness.

For each basis (edges between heads and MLPs, heads, neurons, features of a dictionary, components of a decomposed
matrix) the table has the smallest circuit of the basis' own order that reaches the same faithfulness:

- the number of its units k, of N;
- its description length in bits: log2 (N choose k) + log2 (N + 1), the choice of k units of N, and k itself;
- the agreement of the circuits that different seeds or samples of prompts find: the mean Jaccard index, beside that
  of random circuits of the same size;
- the number of units that random circuits need.

A basis has a model of its own (with dictionaries spliced in, or decomposed). Faithfulness always compares with the
clean and corrupted metric of the *original* model, so a basis also pays for what its replacement loses.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.discovery.selection import Order, first, random_ranks, ranked
from jax_interp.circuits.discovery.units import TOKENS_AT_ONCE, Units, run_circuits
from jax_interp.circuits.evaluation.report import finite, reference
from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, estimate
from jax_interp.surgery.contract import Model


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """One way to cut a model into units.

    Args:
      model: the model of this basis. It computes what the original model computes, up to the errors of the basis.
      units: its units.
      scores: [seed, unit], scores from several seeds or samples of prompts. One row is possible; there is then no
        agreement.
      order: how scores become circuits.
    """

    model: Model
    units: Units
    scores: Float[np.ndarray | Array, "seed unit"]
    order: Order = "absolute"


@dataclasses.dataclass(frozen=True, eq=False)
class BasisRow:
    """One row of the table.

    Args:
      name: the name of the basis.
      units: N, the number of all units.
      size: k, the number of units of the smallest circuit that is faithful enough; None if no circuit is.
      faithfulness: that of this circuit, with an interval over prompts.
      bits: the description length of the circuit.
      whole: the faithfulness of all units: below 1 by the errors of the basis.
      random_size: the number of units that the median random circuit needs; None if it is not reached.
      agreement: the mean Jaccard index of the circuits of size k of two seeds; NaN with one seed.
      chance_agreement: that of random circuits of size k.
      keep: the circuit of the first seed.
    """

    name: str
    units: int
    size: int | None
    faithfulness: Estimate | None
    bits: float
    whole: Estimate
    random_size: int | None
    agreement: float
    chance_agreement: float
    keep: Bool[np.ndarray, " unit"] | None

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values; NaN and infinity become null."""
        plain = dataclasses.asdict(self)
        del plain["keep"]
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}


def compare_bases(
    original: Model,
    contrast: Contrast,
    bases: Mapping[str, Basis],
    *,
    faithfulness: float = 0.9,
    sizes: int = 24,
    random_seeds: int = 5,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> list[BasisRow]:
    """Find the smallest faithful circuit in each basis.

    The sizes that are tried grow geometrically from 1 to all units. Then sizes between the first faithful one and the
    one before it are tried.

    Args:
      original: the model without any replacement.
      contrast: the prompts, at least two, and the metric.
      bases: the bases by name.
      faithfulness: what a circuit must reach.
      sizes: the number of sizes of each of the two passes.
      random_seeds: the number of random circuits of each size.
      tokens_at_once: see `run_circuits`.

    Raises:
      UserError: there is no basis, the scores of one do not fit, or the metric is the same for both kinds of prompts.
    """
    if not bases or not faithfulness > 0 or sizes < 2 or random_seeds < 1:
        raise UserError("compare_bases needs a basis, faithfulness above 0, two sizes and a random seed at least")
    clean, corrupted = reference(original, contrast)
    level = lambda metric: (metric.mean(axis=1) - corrupted.mean()) / (clean.mean() - corrupted.mean())
    rows = []
    for name, basis in bases.items():
        n, seeds = len(basis.units), np.atleast_2d(np.asarray(basis.scores, float))
        orders = [ranked(basis.units, one, basis.order) for one in seeds]
        run = lambda keep, basis=basis: finite(
            run_circuits(basis.model, contrast, basis.units, keep, tokens_at_once=tokens_at_once)
        )
        tried = np.unique(np.geomspace(1, n, sizes).round().astype(int))
        metric = run(first(orders[0], tried))
        size, found = None, None
        if len(reached := np.nonzero(level(metric) >= faithfulness)[0]):
            before = 0 if reached[0] == 0 else int(tried[reached[0] - 1])
            between = np.unique(np.linspace(before + 1, tried[reached[0]], sizes).round().astype(int))
            finer = run(first(orders[0], between))
            at = int(np.nonzero(level(finer) >= faithfulness)[0][0])
            size, found = int(between[at]), _faithful(finer[at], clean, corrupted)
        chance = [level(run(first(random_ranks(basis.units, seed), tried))) for seed in range(random_seeds)]
        enough = tried[np.median(chance, axis=0) >= faithfulness]
        circuits = [] if size is None else [first(ranks, [size])[0] for ranks in orders]
        rows.append(BasisRow(
            name, n, size, found, math.inf if size is None else description_length(n, size),
            _faithful(metric[-1], clean, corrupted), int(enough[0]) if len(enough) else None, jaccard(circuits),
            math.nan if size is None else size / (2 * n - size), circuits[0] if circuits else None,
        ))  # fmt: skip
    return rows


def description_length(units: int, size: int) -> float:
    """log2 (N choose k) + log2 (N + 1) in bits: which k of N units, and how many."""
    choices = math.lgamma(units + 1) - math.lgamma(size + 1) - math.lgamma(units - size + 1)
    return choices / math.log(2) + math.log2(units + 1)


def jaccard(circuits: list[Bool[np.ndarray, " unit"]]) -> float:
    """The mean of |A ∩ B| / |A ∪ B| over all pairs; NaN if there is no pair. Two empty circuits agree."""
    pairs = list(itertools.combinations(circuits, 2))
    shares = [(a & b).sum() / (a | b).sum() if (a | b).any() else 1.0 for a, b in pairs]
    return float(np.mean(shares)) if shares else math.nan


def _faithful(metric: np.ndarray, clean: np.ndarray, corrupted: np.ndarray) -> Estimate:
    return estimate(lambda w: (w @ metric - w @ corrupted) / (w @ clean - w @ corrupted), len(metric))
