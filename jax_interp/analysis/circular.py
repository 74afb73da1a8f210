"""Values that lie on a circle, such as days and months: a circular probe, and interventions on the angle.

    probe = fit_circle(hidden, alpha, period=7)             hidden [prompt, d] at the token of the day, alpha = 0..6
    probe.angle(hidden)                                     which day it reads
    moved = edit(model, at("blocks.8.resid_post", Replace(probe.moved_to(beta)[:, None]), where=at_the_day))

The probe is that of Engels et al. 2025 (arXiv:2405.14860, section 5): the first principal components of the values over
the prompts, and a least-squares map P from them to (cos 2πα/m, sin 2πα/m).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.objectives import log_probabilities
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Model, Replace, at, edit, values_at

Convention = Literal["centred", "published"]
Intervention = Literal["circle", "circle (published)", "components", "whole value", "mean"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class CircularProbe:
    """A map from values to a plane in which they lie on the unit circle.

    Args:
      mean: the mean of the values over the prompts.
      axes: the principal components, orthonormal.
      map: P: from coordinates on the components to (cos, sin).
      period: the number m of points of the circle.
      residual: the mean squared distance of the fitted points from the circle's points: 0 for a perfect fit, 1 if the
        values say nothing of the angle.
    """

    mean: Float[Array, " d"]
    axes: Float[Array, "d component"]
    map: Float[Array, "component 2"]
    period: int = dataclasses.field(metadata={"static": True})
    residual: Float[Array, ""]

    def points(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch 2"]:
        """The points of the plane that the probe reads."""
        x = jnp.asarray(x, self.mean.dtype)
        return (x - jnp.broadcast_to(self.mean, x.shape)) @ self.axes @ self.map

    def angle(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
        """The number on the circle that the probe reads, from 0 to the period."""
        point = self.points(x)
        return jnp.arctan2(point[..., 1], point[..., 0]) / (2 * jnp.pi) * self.period % self.period

    def moved_to(
        self,
        alpha: ArrayLike,
        *,
        radius: ArrayLike = 1.0,
        convention: Convention = "centred",
    ) -> Float[Array, "*batch d"]:
        """The value with a given number on the circle, and the mean in every other direction.

        With P = QR, the directions of the plane are axes·Q. Two conventions are in use:

            centred      x̄ + circle(α) R⁻¹ Qᵀ axesᵀ. The probe reads circle(α) from it, exactly
            published    the same, less the part of the mean itself in the plane: - x̄ axes Q Qᵀ axesᵀ. The paper's code
                         does so, although its probe is fitted on values less their mean. The probe then reads
                         circle(α) - x̄ axes P

        Args:
          alpha: the number on the circle; any real number.
          radius: the distance from the centre. 1: on the circle.
          convention: see above.
        """
        turn = 2 * jnp.pi * jnp.asarray(alpha, self.mean.dtype) / self.period
        length = jnp.broadcast_to(jnp.asarray(radius, self.mean.dtype), turn.shape)
        circle = length[..., None] * jnp.stack([jnp.cos(turn), jnp.sin(turn)], axis=-1)
        Q, R = jnp.linalg.qr(self.map)
        plane = self.axes @ Q
        moved = circle @ jnp.linalg.inv(R) @ plane.T
        rest = self.mean if convention == "centred" else self.mean - (self.mean @ plane) @ plane.T
        return jnp.broadcast_to(rest, moved.shape) + moved


def fit_circle(
    values: Float[ArrayLike, "prompt d"], alpha: Int[ArrayLike, " prompt"], period: int, components: int = 5
) -> CircularProbe:
    """Fit a circular probe, in float64 on the host.

    Args:
      values: the values at one place of the model over prompts.
      alpha: the number on the circle of each prompt, such as the day of the week.
      period: the number of points of the circle.
      components: the number of principal components.

    Raises:
      UserError: there are fewer prompts than components + 1, the values are not finite, fewer than three numbers occur,
        or the values do not depend on the number.
    """
    x, a = np.asarray(values, np.float64), np.asarray(alpha)
    if x.ndim != 2 or a.shape != x.shape[:1] or a.dtype.kind not in "iu":
        raise UserError(
            f"values of shape {x.shape} with numbers {a.dtype}{list(a.shape)}: [prompt, d] and whole [prompt]"
        )
    if not np.isfinite(x).all():
        raise UserError("some values are NaN or infinite")
    most = min(len(x) - 1, x.shape[1])
    if not 2 <= components <= most:
        raise UserError(f"{components} components of {len(x)} prompts in {x.shape[1]} dimensions: from 2 to {most}")
    if len(np.unique(a % period)) < 3:
        raise UserError(f"the prompts have {len(np.unique(a % period))} different numbers: a circle needs at least 3")
    mean = x.mean(0)
    axes = np.linalg.svd(x - mean, full_matrices=False)[2][:components].T
    turn = 2 * np.pi * a / period
    target = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    coordinates = (x - mean) @ axes
    # float32 values have a rounding of 1e-7 in directions where they do not vary: such a component must not be read
    P = np.linalg.lstsq(coordinates, target, rcond=1e-5)[0]
    if np.linalg.matrix_rank(P) < 2:
        raise UserError("the values do not depend on the numbers: there is no plane to read them from")
    residual = np.mean(np.sum((coordinates @ P - target) ** 2, axis=1))
    mean, axes, P, residual = (jnp.asarray(one, jnp.float32) for one in (mean, axes, P, residual))
    return CircularProbe(mean, axes, P, period, residual)


@dataclasses.dataclass(frozen=True)
class InterventionEffect:
    """The effect of an intervention on the answers, over all pairs of a prompt and a new number.

    Args:
      logit_difference: the mean of logit(old answer) - logit(new answer) after the intervention. Negative where the new
        answer wins.
      clean: the same without the intervention.
      accuracy: how often the new answer is the most probable of all answers.
      patches: the number of pairs.
    """

    logit_difference: float
    clean: float
    accuracy: float
    patches: int


def intervention_effects(
    model: Model,
    address: str,
    probe: CircularProbe,
    tokens: Int[Array, "prompt pos"],
    position: int,
    alpha: Int[ArrayLike, " prompt"],
    answer: Callable[[Int[np.ndarray, "..."], Int[np.ndarray, "..."]], Int[np.ndarray, "..."]],
) -> dict[Intervention, InterventionEffect]:
    """Move the number of each prompt to every other number, in five ways, and measure the answers.

        circle               `moved_to`: the new point of the circle, and the mean in all other directions
        circle (published)   the same with the published convention
        components           the mean over prompts with the new number, within the probe's components
        whole value          the mean over prompts with the new number
        mean                 the mean over all prompts: it has no number

    Args:
      model: any model that returns logits [prompt, pos, vocab]. The answer is predicted at the last position.
      address: the address of the value.
      probe: the probe for this value.
      tokens: the prompts, of one length.
      position: the position of the number.
      alpha: the number of each prompt.
      answer: the token of the right answer, from the numbers of prompts and the numbers that are put in their place.

    Returns:
      The effect of each intervention.

    Raises:
      UserError: a number between 0 and the period does not occur in `alpha`.

    Example:
        days = lambda prompt, number: day_tokens[(number + offset[prompt]) % 7]
        intervention_effects(model, "blocks.8.resid_post", probe, tokens, 11, alpha, days)
    """
    a, m = np.asarray(alpha) % probe.period, probe.period
    if missing := sorted(set(range(m)) - set(a.tolist())):
        raise UserError(f"no prompt has the numbers {missing}: the means need every number from 0 to {m - 1}")
    x = values_at(model, address)(tokens)[address][:, position].astype(probe.mean.dtype)
    means = jnp.stack([jnp.mean(x[np.flatnonzero(a == number)], axis=0) for number in range(m)])
    numbers = jnp.arange(m)
    within = (means - probe.mean[None]) @ probe.axes @ probe.axes.T
    donors: dict[Intervention, Array] = {
        "circle": probe.moved_to(numbers),
        "circle (published)": probe.moved_to(numbers, convention="published"),
        "components": probe.mean[None] + within,
        "whole value": means,
        "mean": jnp.broadcast_to(probe.mean, means.shape),
    }
    prompt, new = (np.asarray(v) for v in zip(*((i, b) for i in range(len(a)) for b in range(m) if b != a[i])))
    old_answer, new_answer = answer(prompt, a[prompt]), answer(prompt, new)
    every = np.unique(np.concatenate([answer(np.arange(len(a)), np.full(len(a), b)) for b in range(m)]))
    clean = np.asarray(log_probabilities(model(tokens)[:, -1]))
    result = {}
    for name, values in donors.items():
        out = np.stack([np.asarray(_answers(model, address, tokens, position, values[b])) for b in range(m)])
        logits = out[new, prompt]
        rows = np.arange(len(prompt))
        difference = logits[rows, old_answer] - logits[rows, new_answer]
        before = clean[prompt, old_answer] - clean[prompt, new_answer]
        wins = every[logits[:, every].argmax(1)] == new_answer
        result[name] = InterventionEffect(
            float(difference.mean()), float(before.mean()), float(np.mean(wins)), len(prompt)
        )
    return result


def _answers(model: Model, address: str, tokens: Array, position: int, value: Array) -> Float[Array, "prompt vocab"]:
    """The log probabilities at the last position, with `value` in place of the value at the number."""
    patched = edit(model, at(address, Replace(value), pos=position))
    return log_probabilities(patched(tokens)[:, -1])
