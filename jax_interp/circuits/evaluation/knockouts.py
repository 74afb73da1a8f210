"""Completeness and minimality: what the circuit lacks, and what it could do without (Wang et al. 2022, 2211.00593).

Completeness asks whether the circuit has everything. If it has, then taking the same part K away from the circuit and
from the whole model has the same effect, whatever K is: m(circuit - K) = m(model - K). Minimality asks whether each of
its units is needed: how much does the metric move when it is taken away?
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.discovery.units import TOKENS_AT_ONCE, EdgeUnits, Units, run_circuits
from jax_interp.circuits.evaluation.report import finite, reference
from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, estimate
from jax_interp.core.labelled import Labelled
from jax_interp.surgery.contract import Model

Part = Literal["unit", "node"]
"""What is taken away together. unit: one unit, such as an edge. node: all edges into and out of one node."""


@dataclasses.dataclass(frozen=True, eq=False)
class Completeness:
    """A circuit and the whole model, both without the same parts.

    Args:
      circuit: [knockout, prompt], the metric of the circuit without the part.
      model: [knockout, prompt], the metric of the model without the part.
      complement: the faithfulness of everything that is not in the circuit. It is near 0 if the circuit is complete.
      span: the mean metric of the clean prompts minus that of the corrupted ones.
    """

    circuit: Labelled
    model: Labelled
    complement: Estimate
    span: float

    def differences(self) -> list[Estimate]:
        """|m(circuit - K) - m(model - K)| as a share of the span, for each knockout, with an interval over prompts."""
        return [
            estimate(lambda w, c=c, m=m: np.abs(w @ c - w @ m) / abs(self.span), len(c))
            for c, m in zip(self.circuit.values, self.model.values)
        ]

    def incompleteness(self) -> Estimate:
        """The largest difference over the knockouts, with an interval over prompts."""
        c, m = self.circuit.values, self.model.values
        return estimate(lambda w: (np.abs(w @ (c - m).T) / abs(self.span)).max(axis=1), c.shape[1])


def completeness(
    model: Model,
    contrast: Contrast,
    units: Units,
    keep: Bool[np.ndarray, " unit"],
    knockouts: Bool[np.ndarray, "knockout unit"],
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Completeness:
    """Take parts away from a circuit and from the whole model.

    Args:
      model: the model.
      contrast: the prompts, at least two, and the metric.
      units: what the circuit is chosen from.
      keep: the circuit.
      knockouts: the units of each part, one part a row (`random_knockouts`, or all parts of `parts_of`).
      tokens_at_once: see `run_circuits`.

    Raises:
      UserError: the shapes do not fit, or the metric cannot tell the clean prompts from the corrupted ones.
    """
    keep, parts = np.asarray(keep, bool), np.asarray(knockouts, bool)
    if keep.shape != (len(units),) or parts.ndim != 2 or parts.shape[1] != len(units) or not len(parts):
        raise UserError(f"with {len(units)} units, the circuit has shape {keep.shape} and the knockouts {parts.shape}")
    clean, corrupted = reference(model, contrast)
    rows = np.concatenate([keep & ~parts, ~parts, ~keep[None]])
    metric = finite(run_circuits(model, contrast, units, rows, tokens_at_once=tokens_at_once))
    axes = {"knockout": [_named(units, part) for part in parts], "prompt": range(metric.shape[1])}
    rest = metric[-1]
    complement = estimate(lambda w: (w @ rest - w @ corrupted) / (w @ clean - w @ corrupted), len(rest))
    return Completeness(
        Labelled(metric[: len(parts)], axes, "metric of the circuit without the part"),
        Labelled(metric[len(parts) : -1], axes, "metric of the model without the part"),
        complement, float(clean.mean() - corrupted.mean()),
    )  # fmt: skip


def parts_of(units: Units, keep: Bool[np.ndarray, " unit"], part: Part = "unit") -> Bool[np.ndarray, "part unit"]:
    """The parts of a circuit that can be taken away, one a row.

    Raises:
      UserError: nodes are asked for, and the units are no edges.
    """
    keep = np.asarray(keep, bool)
    if part == "unit":
        return np.eye(len(units), dtype=bool)[keep]
    if part != "node" or not isinstance(units, EdgeUnits):
        raise UserError(f"part={part!r}: choose unit, or node where the units are edges")
    rows = [_touching(units, node) & keep for node in np.unique(units.places[1][keep]).tolist()]
    return np.array(rows).reshape(-1, len(units))


def random_knockouts(
    units: Units, keep: Bool[np.ndarray, " unit"], n: int, *, part: Part = "unit", share: float = 0.5, seed: int = 0
) -> Bool[np.ndarray, "knockout unit"]:
    """Random sets of parts of a circuit: each part is in each set with probability `share`."""
    parts = parts_of(units, keep, part)
    drawn = np.random.default_rng(seed).random((n, len(parts))) < share
    return np.any(drawn[:, :, None] & parts[None], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Minimality:
    """What each part of a circuit does, beside what units outside it would do.

    Args:
      effect: [part, prompt], (m(circuit) - m(circuit - part)) / (mean m(clean) - mean m(corrupted)).
      outside: [unit, prompt], (m(circuit + unit) - m(circuit)) / (the same), for random units outside the circuit
        (the inflated circuits of Shi et al. 2024, arXiv:2410.13032). A part whose effect is no larger than these is
        not shown to be needed.
    """

    effect: Labelled
    outside: Labelled

    def estimates(self) -> dict[str, Estimate]:
        """The mean effect of each part with an interval over prompts, largest |effect| first."""
        found = {
            str(name): estimate(lambda w, e=e: w @ e, len(e))
            for name, e in zip(self.effect.axes["part"], self.effect.values)
        }
        return dict(sorted(found.items(), key=lambda item: -abs(item[1].value)))

    def unneeded(self, quantile: float = 0.9) -> list[str]:
        """The parts whose |mean effect| is not above this quantile of the |mean effects| of units outside."""
        limit = np.quantile(np.abs(self.outside.values.mean(axis=1)), quantile) if self.outside.shape[0] else 0.0
        return [name for name, one in self.estimates().items() if abs(one.value) <= limit]


def minimality(
    model: Model,
    contrast: Contrast,
    units: Units,
    keep: Bool[np.ndarray, " unit"],
    *,
    part: Part = "unit",
    outside: int = 20,
    seed: int = 0,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Minimality:
    """Take each part away from a circuit, and add random units to it.

    Args:
      model: the model.
      contrast: the prompts, at least two, and the metric.
      units: what the circuit is chosen from.
      keep: the circuit.
      part: what is taken away: units, or the nodes of edges.
      outside: the number of random units that are added, one at a time.
      seed: the seed of this choice.
      tokens_at_once: see `run_circuits`.
    """
    keep = np.asarray(keep, bool)
    if keep.shape != (len(units),) or not keep.any():
        raise UserError(f"with {len(units)} units, the circuit has shape {keep.shape} and {int(keep.sum())} units")
    clean, corrupted = reference(model, contrast)
    span = clean.mean() - corrupted.mean()
    parts = parts_of(units, keep, part)
    others = np.nonzero(~keep)[0]
    others = np.random.default_rng(seed).choice(others, min(outside, len(others)), replace=False)
    added = keep[None] | np.eye(len(units), dtype=bool)[others]
    rows = np.concatenate([keep[None], keep & ~parts, added])
    metric = finite(run_circuits(model, contrast, units, rows, tokens_at_once=tokens_at_once))
    whole, without, more = metric[:1], metric[1 : 1 + len(parts)], metric[1 + len(parts) :]
    prompts = range(metric.shape[1])
    effect = Labelled(
        (whole - without) / span, {"part": _labels(units, keep, part), "prompt": prompts}, "effect of removal"
    )
    names = [units.names[i] for i in others.tolist()]
    return Minimality(
        effect, Labelled((more - whole) / span, {"unit": names, "prompt": prompts}, "effect of adding it")
    )


def _labels(units: Units, keep: Bool[np.ndarray, " unit"], part: Part) -> list[str]:
    """The names of the rows of `parts_of`."""
    if part == "node" and isinstance(units, EdgeUnits):
        return [units.graph.source_names[node] for node in np.unique(units.places[1][keep]).tolist()]
    return [units.names[i] for i in np.nonzero(keep)[0].tolist()]


def _touching(units: EdgeUnits, node: int) -> Bool[np.ndarray, " unit"]:
    targets, sources = units.places
    return (sources == node) | units.inputs[targets, node]


def _named(units: Units, part: Bool[np.ndarray, " unit"]) -> str:
    names = [units.names[i] for i in np.nonzero(part)[0].tolist()]
    return ", ".join(names[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"
