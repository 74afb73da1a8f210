"""Activation patching over all layers and positions, in one compiled program.

One prompt is run with one value taken from the run of another prompt, at one layer and position at a time. Where that
brings the other prompt's answer back, the value carries what tells the prompts apart there (Meng et al. 2022,
arXiv:2202.05262; Heimersheim & Nanda 2024, arXiv:2404.15255).

    metric = LogitDifference(tokenizer.id_of("data"), tokenizer.id_of("name"))
    grid = patch_grid(model, clean, corrupted, "resid_pre", metric)                          # [layer, pos]
    recovered = (grid - metric(model(corrupted))) / (metric(model(clean)) - metric(model(corrupted)))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.surgery import Each, Replace, at, edit, read
from jax_interp.surgery.contract import Model

Metric: TypeAlias = Callable[[Any], Float[Array, ""]]
"""From the model's output to one number. A callable pytree is an argument of the compiled program, a plain function is
compiled with it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitDifference:
    """The logit of one token minus the logit of another at one position, averaged over the batch.

    Args:
      answer: token id, or one for each sequence.
      other: likewise.
      pos: the position that predicts them.
    """

    answer: Int[Array, "*batch"] | int
    other: Int[Array, "*batch"] | int
    pos: int = dataclasses.field(default=-1, metadata={"static": True})

    def __call__(self, logits: Float[Array, "batch pos vocab"]) -> Float[Array, ""]:
        last = logits[:, self.pos]
        row = jnp.arange(last.shape[0])
        return jnp.mean(last[row, self.answer] - last[row, self.other])


def patch_grid(
    model: Model, source: Int[Array, "batch pos"], target: Int[Array, "batch pos"], name: str, metric: Metric
) -> Float[Array, "layer pos"]:
    """Run `target` with one value of the run of `source`, for every layer and position.

    Layers and positions are traced indices: all runs are one program, two `vmap`s over a model under surgery.

    Args:
      model: any model whose blocks all have the value.
      source: the prompts that values are taken from.
      target: the prompts that are run with them.
      name: the value's name within a block, such as "resid_pre", "attn_out" or "mlp.post". Its axes after the layer's
        must be batch and position.
      metric: what is measured of each output.

    Returns:
      The metric of each run.

    Raises:
      UserError: the prompts differ in shape, or the model has no such value.
    """
    if source.shape != target.shape:
        raise UserError(
            f"the source has shape {source.shape} and the target {target.shape}: patching position by position needs "
            "prompts of equally many tokens"
        )
    if jax.tree_util.all_leaves([metric]):  # a plain function
        metric = jax.tree_util.Partial(metric)
    return _patch_grid(model, source, target, metric, name=name)


@partial(jax.jit, static_argnames="name")
def _patch_grid(model: Model, source: Array, target: Array, metric: Metric, *, name: str) -> Float[Array, "layer pos"]:
    address = f"blocks.*.{name}"
    values = read(model, address, output=False)(source)[address]

    def patched(layer: Int[Array, ""], pos: Int[Array, ""]) -> Float[Array, ""]:
        return metric(edit(model, at(f"blocks.{name}", Each(Replace(values)), layer=layer, pos=pos))(target))

    over_positions = jax.vmap(patched, in_axes=(None, 0))
    return jax.vmap(over_positions, in_axes=(0, None))(jnp.arange(values.shape[0]), jnp.arange(target.shape[1]))
