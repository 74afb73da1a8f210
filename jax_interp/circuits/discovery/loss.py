"""What a method of discovery minimises: the KL to the whole model, or minus the metric."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
from jaxtyping import Array, Float

from jax_interp.circuits.contrast import Contrast, run
from jax_interp.circuits.metrics import KL, AtPosition
from jax_interp.core.errors import UserError
from jax_interp.surgery.contract import Model

Loss = Literal[1, -1]
"""The sign that makes a metric a loss."""


def loss_contrast(model: Model, contrast: Contrast, loss: Literal["kl", "metric"]) -> tuple[Contrast, Loss]:
    """A contrast whose metric, times a sign, is the loss of each prompt.

    Args:
      model: the whole model.
      contrast: the prompts and the metric.
      loss: kl: KL(whole model ‖ circuit) in nats, at the position of the metric. metric: minus the metric.

    Raises:
      UserError: there is no such loss, or the metric does not say which position it reads.
    """
    if loss == "metric":
        return contrast, -1
    if loss != "kl":
        raise UserError(f"loss={loss!r}: choose kl (distance to the whole model) or metric")
    metric = contrast.metric
    if not isinstance(metric, AtPosition):
        raise UserError(
            f"the KL is measured at the position of the metric, and {type(metric).__name__} has no static `pos`: "
            "choose loss='metric', or a metric such as LogitDifference(answers, others, pos=-1)"
        )
    return dataclasses.replace(contrast, metric=KL(_logits(model, contrast, metric), pos=metric.pos)), 1


@jax.jit
def _logits(model: Model, contrast: Contrast, metric: AtPosition) -> Float[Array, "prompt vocab"]:
    return metric.logits_of(run(model, contrast.clean, contrast))
