"""How good circuits are: faithfulness at each size, CPR and CMD, beside random circuits of equal size.

    report = evaluate(model, contrast, units, scores)
    report.faithfulness()        Labelled [size, figure]: value, low, high
    report.cpr(), report.cmd()   with intervals over prompts
    report.random_cpr()          of the random circuits, with their spread

Definitions are those of MIB (arXiv:2504.13151; hannamw/MIB-circuit-track, evaluate_area_under_curve). Faithfulness is
(m(circuit) - m(corrupted)) / (m(clean) - m(corrupted)) with means over the prompts. CPR is the area under it and CMD
the area under |1 - faithfulness|, both by the trapezoidal rule over the *nominal* fractions .001, .002, .005, .01, .02,
.05, .1, .2, .5, 1 (without a point at 0). The largest CPR is not bounded by 1; the best CMD is 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.circuits.contrast import Contrast, baseline
from jax_interp.circuits.discovery.selection import MIB_FRACTIONS, Order, first, random_ranks, ranked, sizes_of
from jax_interp.circuits.discovery.units import TOKENS_AT_ONCE, Units, run_circuits
from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, estimate, interval, resampling_weights
from jax_interp.core.labelled import Labelled
from jax_interp.core.processes import on_host
from jax_interp.surgery.contract import Model


@dataclasses.dataclass(frozen=True, eq=False)
class CircuitReport:
    """The metric of circuits of several sizes, prompt by prompt.

    Args:
      fractions: the nominal size of each circuit, as a fraction of all units.
      sizes: the number of units of each circuit, without those that have no effect.
      units: the number of all units.
      metric: [size, prompt], the metric when the model runs with the circuit.
      random: [seed, size, prompt], the same for random circuits with `sizes` units.
      clean: the metric of each clean prompt.
      corrupted: the metric of each corrupted prompt.
    """

    fractions: tuple[float, ...]
    sizes: tuple[int, ...]
    units: int
    metric: Labelled
    random: Labelled
    clean: Float[np.ndarray, " prompt"]
    corrupted: Float[np.ndarray, " prompt"]

    def faithfulness(self, level: float = 0.95) -> Labelled:
        """[size, (value, low, high)]: the interval is over draws of the prompts."""
        found = [estimate(lambda w, i=i: self._faithful(w, self.metric.values)[:, i], len(self.clean), level=level)
                 for i in range(len(self.sizes))]  # fmt: skip
        return self._figures(found, "faithfulness")

    def random_faithfulness(self, level: float = 0.95) -> Labelled:
        """[size, (value, low, high)] of the random circuits: the interval is over seeds and draws of the prompts."""
        drawn = self._random_draws()
        value = np.mean([self._faithful(self._even(), values)[0] for values in self.random.values], axis=0)
        return self._figures([interval(v, d, level) for v, d in zip(value, drawn.T)], "faithfulness, random circuits")

    def cpr(self) -> Estimate:
        """The area under the faithfulness curve (circuit performance ratio)."""
        return estimate(lambda w: _area(self.fractions, self._faithful(w, self.metric.values)), len(self.clean))

    def cmd(self) -> Estimate:
        """The area between the faithfulness curve and 1 (circuit-model distance)."""
        return estimate(
            lambda w: _area(self.fractions, np.abs(1 - self._faithful(w, self.metric.values))), len(self.clean)
        )

    def random_cpr(self) -> Estimate:
        """The CPR of the random circuits, with the spread over seeds and prompts."""
        return self._random_area(lambda curve: curve)

    def random_cmd(self) -> Estimate:
        """The CMD of the random circuits, with the spread over seeds and prompts."""
        return self._random_area(lambda curve: np.abs(1 - curve))

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values, with all definitions' inputs."""
        curve, chance = self.faithfulness().values, self.random_faithfulness().values
        return {
            "fractions": list(self.fractions),
            "sizes": list(self.sizes),
            "units": self.units,
            "prompts": len(self.clean),
            "clean": _mean_and_std(self.clean),
            "corrupted": _mean_and_std(self.corrupted),
            "faithfulness": [dict(zip(("value", "low", "high"), row)) for row in curve.tolist()],
            "cpr": self.cpr().to_json(),
            "cmd": self.cmd().to_json(),
            "random": {
                "seeds": self.random.shape[0],
                "faithfulness": [dict(zip(("value", "low", "high"), row)) for row in chance.tolist()],
                "cpr": self.random_cpr().to_json(),
                "cmd": self.random_cmd().to_json(),
            },
        }

    def _even(self) -> Float[np.ndarray, "1 prompt"]:
        return np.full((1, len(self.clean)), 1 / len(self.clean))

    def _faithful(self, weights: np.ndarray, metric: np.ndarray) -> Float[np.ndarray, "draw size"]:
        clean, corrupted = (weights @ values for values in (self.clean, self.corrupted))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (weights @ metric.T - corrupted[:, None]) / (clean - corrupted)[:, None]

    def _random_draws(self, draws: int = 1000) -> Float[np.ndarray, "draw size"]:
        weights = resampling_weights(len(self.clean), draws)
        seeds = np.random.default_rng(1).integers(self.random.shape[0], size=draws)
        found = np.empty((draws, len(self.sizes)))
        for seed, values in enumerate(self.random.values):
            found[seeds == seed] = self._faithful(weights[seeds == seed], values)
        return found

    def _random_area(self, transform: Any) -> Estimate:
        each = [_area(self.fractions, transform(self._faithful(self._even(), v)))[0] for v in self.random.values]
        return interval(float(np.mean(each)), _area(self.fractions, transform(self._random_draws())))

    def _figures(self, found: Sequence[Estimate], name: str) -> Labelled:
        rows = [[one.value, one.low, one.high] for one in found]
        return Labelled(np.array(rows), {"size": self.sizes, "figure": ("value", "low", "high")}, name)


def evaluate(
    model: Model,
    contrast: Contrast,
    units: Units,
    scores: Float[np.ndarray | Array, " unit"],
    *,
    order: Order = "absolute",
    fractions: Sequence[float] = MIB_FRACTIONS,
    seeds: int = 5,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> CircuitReport:
    """Evaluate the circuits of the highest scores, at several sizes.

    Args:
      model: the model.
      contrast: the prompts, at least two, and the metric.
      units: what the circuits are chosen from.
      scores: one number for each unit; [target, source] is accepted for edges.
      order: how scores become circuits (see `Order`). MIB takes "absolute" for CMD and "signed" for CPR.
      fractions: the sizes, as fractions of all units, in ascending order.
      seeds: the number of random circuits for each size.
      tokens_at_once: how many tokens of all circuits run together.

    Raises:
      UserError: the scores do not fit, the clean and corrupted prompts have the same metric, or a metric is NaN.
    """
    keep = first(ranked(units, scores, order), sizes_of(units, fractions))
    return evaluate_circuits(
        model, contrast, units, keep, fractions=fractions, seeds=seeds, tokens_at_once=tokens_at_once
    )


def evaluate_circuits(
    model: Model,
    contrast: Contrast,
    units: Units,
    keep: Bool[np.ndarray, "size unit"],
    *,
    fractions: Sequence[float] | None = None,
    seeds: int = 5,
    baseline_kind: Literal["connected", "uniform"] = "connected",
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> CircuitReport:
    """Evaluate circuits that were chosen in any way.

    Units without an effect are removed first (`Units.pruned`), as in MIB. The random circuits have the number of units
    that is left. All circuits, random ones too, are run by one compiled program.

    Args:
      model: the model.
      contrast: the prompts, at least two, and the metric.
      units: what the circuits are chosen from.
      keep: one circuit a row, in ascending order of the size.
      fractions: the nominal size of each circuit. None: its share of the units before the removal.
      seeds: the number of random circuits for each size.
      baseline_kind: see `random_ranks`.
      tokens_at_once: how many tokens of all circuits run together.

    Raises:
      UserError: the circuits do not fit, or are not in ascending order; the clean and corrupted prompts have the same
        metric; a metric is NaN.
    """
    keep = np.asarray(keep, bool)
    if keep.ndim != 2 or keep.shape[1] != len(units):
        raise UserError(f"circuits have the shape [size, unit] with {len(units)} units; these have {keep.shape}")
    nominal = keep.mean(axis=1) if fractions is None else np.asarray(fractions, float)
    if len(nominal) != len(keep) or (np.diff(nominal) < 0).any():
        raise UserError(f"give the {len(keep)} circuits in ascending order, with one fraction for each")
    if seeds < 1:
        raise UserError(f"seeds={seeds}: at least one random circuit is needed beside each circuit")
    clean, corrupted = reference(model, contrast)
    kept = units.pruned(keep)
    sizes = kept.sum(axis=1)
    chance = [first(random_ranks(units, seed, baseline_kind), sizes) for seed in range(seeds)]
    metric = finite(
        run_circuits(model, contrast, units, np.concatenate([kept, *chance]), tokens_at_once=tokens_at_once)
    )
    metric = metric.reshape(1 + seeds, len(sizes), -1)
    prompts = range(metric.shape[-1])
    axes = {"size": tuple(sizes.tolist()), "prompt": prompts}
    return CircuitReport(
        tuple(nominal.tolist()), tuple(sizes.tolist()), len(units), Labelled(metric[0], axes, "metric"),
        Labelled(metric[1:], {"seed": range(seeds), **axes}, "metric, random circuits"), clean, corrupted,
    )  # fmt: skip


def reference(model: Model, contrast: Contrast) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]:
    """(the metric of each clean prompt, that of each corrupted prompt).

    Raises:
      UserError: there are fewer than two prompts, a metric is NaN, or the means of the two are equal.
    """
    if contrast.clean.shape[0] < 2:
        raise UserError("an evaluation needs at least two prompts: a figure without a spread says nothing")
    clean, corrupted = (finite(np.asarray(on_host(values), float)) for values in baseline(model, contrast))
    if np.isclose(clean.mean(), corrupted.mean(), rtol=1e-6, atol=1e-12):
        raise UserError(
            f"the metric is {clean.mean():.4g} for clean and for corrupted prompts: faithfulness is not defined. "
            "Choose corrupted prompts that change the answer, or a metric that sees the difference"
        )
    return clean, corrupted


def finite(values: Float[np.ndarray, "*rows prompt"]) -> Float[np.ndarray, "*rows prompt"]:
    """The values themselves. Raises `UserError` with the numbers of the prompts if a value is NaN or infinite."""
    wrong = ~np.isfinite(values).reshape(-1, values.shape[-1]).all(axis=0)
    if wrong.any():
        raise UserError(f"the metric is not finite for the prompts {np.nonzero(wrong)[0][:10].tolist()}")
    return np.asarray(values, float)


def _area(fractions: Sequence[float], curve: Float[np.ndarray, "draw size"]) -> Float[np.ndarray, " draw"]:
    return np.trapezoid(curve, np.asarray(fractions), axis=-1)


def _mean_and_std(values: Float[np.ndarray, " prompt"]) -> dict[str, float]:
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1))}
