"""Probes as parts of a model: named scores, steering, projection, and scores that are set.

    probe = fitted.probe(site="blocks.2.resid_post")
    watched = edit(model, at("blocks.2.resid_post", SpliceProbe(probe)))
    call(read(watched, "blocks.2.resid_post.probe"), tokens)              the score of each token
    edit(watched, at("blocks.2.resid_post.probe", Clamp(5.0, 5.0)))       the least change that gives this score

    edit(model, at("blocks.2.resid_post", steer(probe, 4.0), pos=-1))     add 4 times the direction
    edit(model, at("blocks.2.resid_post", project_out(probe)))            remove the direction
    edit(model, at("blocks.2.resid_post", SetScore(probe, 0.0)))          set the score

    probes = stacked_probes(fitted, strength=1.0)                         one probe for each layer
    edit(model, at("blocks.*.resid_post", Each(SpliceProbe(probes))))

Edits compute in at least float32. In a half precision model their result is rounded to the dtype of the model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.class_moments import HIGH, class_means, class_weights, counted_rows
from jax_interp.probes.fit import AXES, FittedProbes
from jax_interp.probes.probe import Probe
from jax_interp.surgery import Add, ProjectOut, ScopedEdit, Site, TokenEdit, ValueTokens


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SpliceProbe(ScopedEdit):
    """Name the score of a probe: at `blocks.2.resid_post`, it is the value `blocks.2.resid_post.probe`.

    The activation does not change. An edit of the score moves the activation along the direction of a linear probe, by
    the least change that gives the edited score.

    Args:
      probe: the probe. A probe that reads whole sequences gives its token scores, if it has them.
    """

    probe: Probe

    def __call__(self, x: Array, site: Site) -> Array:
        score = self.probe.token_scores(upcast(x))
        edited = site("probe", score, " ".join(site.axes[: score.ndim]))
        return _moved(x, self.probe, edited - score) if site.edits("probe") else x


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SetScore(TokenEdit):
    """Set the score of a linear probe, by the least change of the activation.

    Args:
      probe: the probe.
      target: the score, a number or an array that is broadcast to the scores `[batch, pos]`. `probe.threshold` puts the
        activation on the border between the classes.
    """

    probe: Probe
    target: Float[Array, "..."] | float

    def __call__(self, x: Array, tokens: ValueTokens) -> Array:
        score = self.probe.token_scores(upcast(x))
        of_score = ValueTokens(tokens.axes[: score.ndim], tokens.positions, tokens.everywhere)
        return _moved(x, self.probe, of_score.like(self.target, score) - score)


def steer(probe: Probe, amount: Float[Array, "..."] | float = 1.0) -> Add:
    """An edit that adds `amount` times the direction w of a linear probe. The score changes by amount · ‖w‖².

    Raises:
      UserError: the probe has no single direction.
    """
    return Add(probe.direction(), amount)


def project_out(probe: Probe) -> ProjectOut:
    """An edit that removes the direction of a linear probe. The score is then the same for every activation.

    Raises:
      UserError: the probe has no single direction.
    """
    return ProjectOut(probe.direction())


def class_shift(
    probe: Probe,
    x: Float[Array, "row d"],
    y: Int[Array, " row"],
    weight: Float[Array, " row"] | None = None,
) -> Float[Array, " d"]:
    """The move along a probe's direction that brings one class mean to the other: ((μ₊ - μ₋) · ŵ) ŵ.

    Add it to move negative examples to the positive class, and subtract it for the other way. Marks & Tegmark 2023
    (arXiv:2310.06824).

    Args:
      probe: a linear probe.
      x: activations, usually the training rows.
      y: the class of each row, 0 or 1.
      weight: the weight of each row; 0 leaves it out. None: 1.

    Returns:
      The vector for `Add`. NaN if a class has no rows.

    Example:
        edit(model, at("blocks.2.resid_post", Add(class_shift(probe, x, y)), pos=-1))
    """
    x = counted_rows(x, jnp.ones(len(x), jnp.float32) if weight is None else weight)
    each = jnp.ones(len(x), x.dtype) if weight is None else weight
    means, w = class_means(x, class_weights(y, each, x)), probe.direction()
    unit = w / jnp.linalg.norm(w)
    return jnp.dot(means[1] - means[0], unit, precision=HIGH) * unit


def stacked_probes(fitted: FittedProbes, **labels: Any) -> Probe:
    """One probe for each site, with a leading axis in the order of the sites. Use it inside `Each`.

    Args:
      fitted: probes of one site in each layer, such as those fitted at `blocks.*.resid_post`. The address of the edit
        must name the same layers in the same order.
      labels: one entry of each other axis that has several.

    Raises:
      UserError: another axis has several entries and was not named, or there is no such entry.
    """
    found = fitted.sel(**labels)
    if several := [name for name in AXES if name != "site" and len(found.axes[name]) > 1]:
        raise UserError(f"name one entry of {', '.join(several)}: there is room for one probe at each site")
    return jax.tree.map(lambda a: a[(slice(None), *(0,) * (len(AXES) - 1))], found.probes)


def _moved(x: Array, probe: Probe, change: Float[Array, "..."]) -> Array:
    """`x` moved along the probe's direction so that the score changes by `change`; the same bits where this is 0.

    A direction of length 0 cannot change the score: the result is NaN.
    """
    w = probe.direction()
    step = w / jnp.dot(w, w, precision=HIGH)
    moved = upcast(x) + change[..., None] * jnp.broadcast_to(step, x.shape)
    return jnp.where((change == 0)[..., None], x, moved.astype(x.dtype))
