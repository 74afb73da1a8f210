"""`Contrast`: clean and corrupted prompts, aligned token by token, and the metric that tells them apart.

All methods of this room take one. `clean` is the behaviour under study. `corrupted` differs from it in what the
behaviour depends on. A value of one run can be put into the other, because each position has one role in both.

    contrast = make_contrast(clean, corrupted, LogitDifference(answers, others))
    baseline(model, contrast)          the metric of each prompt in both runs
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.metrics import Metric, as_metric
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import Wrapper
from jax_interp.training.meshes import row_axes, row_shards
from jax_interp.training.sharding import shard_batch

Direction = Literal["denoise", "noise"]
"""denoise: run the corrupted prompt with clean values, which finds what suffices. noise: run the clean prompt with
corrupted values, which finds what is needed."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Contrast:
    """Pairs of prompts and a metric. `make_contrast` makes it and checks it.

    Args:
      clean: the tokens of the clean prompts.
      corrupted: the tokens of the corrupted prompts. Position for position they have the same role.
      metric: one number for each prompt.
      mask: True for real tokens, False for padding. It is the same in both runs. None: there is no padding.
    """

    clean: Int[Array, "prompt pos"]
    corrupted: Int[Array, "prompt pos"]
    metric: Metric
    mask: Bool[Array, "prompt pos"] | None = None

    def rows(self, index: Int[Array, " row"] | slice) -> Contrast:
        """Some of the prompts."""
        index = jnp.arange(self.clean.shape[0])[index] if isinstance(index, slice) else jnp.asarray(index)
        mask = None if self.mask is None else self.mask[index]
        return Contrast(self.clean[index], self.corrupted[index], self.metric.rows(index), mask).split()

    def split(self) -> Contrast:
        """The same prompts, split over the row axes of the mesh that is active if their number can be divided equally.
        Without a mesh it is the contrast itself."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or not mesh.are_all_axes_auto or self.clean.shape[0] % row_shards(mesh):
            return self
        parts = {"clean": self.clean, "corrupted": self.corrupted, "mask": self.mask}
        if isinstance(self.clean, Tracer):
            parts = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, jax.P(row_axes(mesh))), parts)
        else:
            parts = shard_batch(parts, jax.sharding.get_mesh())
        return dataclasses.replace(self, **parts)

    def runs(self, direction: Direction) -> tuple[Int[Array, "prompt pos"], Int[Array, "prompt pos"]]:
        """(the tokens that values are taken from, the tokens that are run with these values)."""
        if direction not in ("denoise", "noise"):
            raise UserError(f"direction={direction!r}: choose denoise (clean into corrupted) or noise (the other way)")
        return (self.clean, self.corrupted) if direction == "denoise" else (self.corrupted, self.clean)


def make_contrast(
    clean: Int[Array | np.ndarray, "prompt pos"],
    corrupted: Int[Array | np.ndarray, "prompt pos"],
    metric: Metric | Callable[[Any], Any],
    *,
    mask: Bool[Array | np.ndarray, "prompt pos"] | None = None,
) -> Contrast:
    """Check two sets of prompts and put them together.

    Args:
      clean: the tokens of the clean prompts.
      corrupted: the tokens of the corrupted prompts, of the same shape.
      metric: a `Metric`, or a function from logits to one number for each prompt.
      mask: True for real tokens, False for padding.

    Returns:
      The contrast.

    Raises:
      UserError: the shapes differ, a mask leaves a prompt without tokens, or the last token of a prompt is padding
        while the metric reads the last position.
    """
    clean, corrupted, metric = jnp.asarray(clean), jnp.asarray(corrupted), as_metric(metric)
    if clean.ndim != 2 or clean.shape != corrupted.shape or not jnp.issubdtype(clean.dtype, jnp.integer):
        raise UserError(
            f"the clean prompts have shape {clean.shape}, the corrupted ones {corrupted.shape}: give token ids "
            "[prompt, pos] of one shape; prompts of a pair need the same number of tokens"
        )
    if mask is not None:
        mask = jnp.asarray(mask, bool)
        if mask.shape != clean.shape or not bool(mask.any(axis=1).all()):
            raise UserError(f"the mask of shape {mask.shape} does not fit {clean.shape}, or a prompt has no token")
        if metric.last_only and not bool(mask[:, -1].all()):
            raise UserError("the metric reads the last position, which is padding in some prompts: pad on the left")
    return Contrast(clean, corrupted, metric, mask)


def measure(model: Model, tokens: Int[Array, "prompt pos"], contrast: Contrast) -> Float[Array, " prompt"]:
    """Run a model, under surgery or not, and return the metric of each prompt. It can be traced.

    Only the logits of the last position are computed if the metric reads no others and the model can do so.
    """
    return contrast.metric(run(model, tokens, contrast))


def run(model: Model, tokens: Int[Array, "prompt pos"], contrast: Contrast) -> Float[Array, "prompt pos vocab"]:
    """The logits that the metric of `contrast` reads, for these tokens and its mask."""
    return model(tokens, **inputs_of(model, contrast))


def inputs_of(model: Model, contrast: Contrast) -> dict[str, Any]:
    """The keyword arguments of the model's call: the mask, and `last_only` if it helps."""
    inputs: dict[str, Any] = {} if contrast.mask is None else {"mask": contrast.mask}
    if contrast.metric.last_only and "last_only" in _parameters(model):
        inputs["last_only"] = True
    return inputs


@jax.jit
def baseline(model: Model, contrast: Contrast) -> tuple[Float[Array, " prompt"], Float[Array, " prompt"]]:
    """(the metric of each clean prompt, the metric of each corrupted prompt), without any intervention."""
    return measure(model, contrast.clean, contrast), measure(model, contrast.corrupted, contrast)


def normalised(
    value: Float[Array, "..."], clean: Float[Array, "..."], corrupted: Float[Array, "..."]
) -> Float[Array, "..."]:
    """(m - m_corrupted) / (m_clean - m_corrupted): 0 is the corrupted run and 1 the clean run, in both directions.

    Give means over prompts: the quotient of single prompts has no finite variance. Where the two runs do not differ the
    result is NaN.
    """
    span = clean - corrupted
    return jnp.where(span == 0, jnp.nan, (value - corrupted) / jnp.where(span == 0, 1, span))


def _parameters(model: Model) -> set[str]:
    while isinstance(model, Wrapper):
        model = model.model
    return set(inspect.signature(type(model).__call__).parameters)
