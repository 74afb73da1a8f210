"""The causal part of a report: does the model use what the chosen probe reads?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool

from jax_interp.probes.causal_effect import CausalConfig, Metric, causal_effect
from jax_interp.probes.causal_report import CausalEffect
from jax_interp.probes.controls import Activations
from jax_interp.probes.fit import FittedProbes
from jax_interp.probes.gather import Vectors
from jax_interp.probes.moves import moves_along
from jax_interp.probes.report import ProbeFigures
from jax_interp.surgery import Model

CONTROLS = 5
"""The number of random directions, and of probes on shuffled labels, beside a probe."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the model answers, and where it is moved.

    Args:
      metric: from the logits at the answer token to one number for each example, larger for answers of the positive
        class: `ProbabilityDifference(true_ids, false_ids)`, or a metric of your own.
      config: the tokens that are moved, the answer token, and how far.
    """

    metric: Metric
    config: CausalConfig = dataclasses.field(default_factory=CausalConfig)


def effect_of(
    model: Model,
    best: ProbeFigures,
    fitted: FittedProbes,
    on: Activations,
    parts: tuple[Bool[np.ndarray, " example"], Bool[np.ndarray, " example"]],
    answers: Answers,
) -> CausalEffect:
    """Move test examples along the chosen probe's direction, at its site, and along control directions.

    Args:
      model: the model.
      best: the figures of the chosen probe.
      fitted: the probes of its kind.
      on: the activations they were fitted on.
      parts: the training part and the test part of the first split.
      answers: the metric.
    """
    (vectors,) = on
    assert isinstance(vectors, Vectors)
    rule = [str(rule) for rule in vectors.rules].index(best.rule)
    site = Vectors(vectors.data, (vectors.rules[rule],), {best.site: vectors.values[best.site][rule : rule + 1]})
    labels: dict[str, Any] = {name: fitted.axes[name][0] for name in ("labels", "split", "seed")}
    one = fitted.sel(site=best.site, rule=best.rule, strength=best.strength, **labels)
    train, test = parts
    moves = moves_along({best.kind: one}, site, train=train, random=CONTROLS, shuffled=CONTROLS)
    return causal_effect(model, vectors.data.take(test), moves, answers.metric, answers.config)
