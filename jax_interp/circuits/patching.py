"""Activation patching over all layers and positions, in one compiled program.

The model runs on the corrupted prompt, with one value replaced by the value from the run on the clean prompt. This is
repeated for every layer and position. If a patch restores the clean answer, the value at this layer and position
carries the information that distinguishes the two prompts (Meng et al. 2022, arXiv:2202.05262; Heimersheim & Nanda
2024, arXiv:2404.15255).

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
"""A function from the model's output to one number. A callable pytree is an argument of the compiled program. A plain
function is part of the program."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitDifference:
    """The logit of one token minus the logit of another at one position, averaged over the batch.

    Args:
      answer: the id of the first token, or one id per sequence.
      other: the id of the token that is compared with it, or one id per sequence.
      pos: the position whose logits are used.
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
    """Run `target` with one value taken from the run of `source`, for every layer and position.

    Layers and positions are traced indices. All runs are one compiled program: two `vmap`s over an edited model.

    Args:
      model: any model in which every block has the value.
      source: the prompts that values are taken from.
      target: the prompts that are run with these values.
      name: the name of the value within a block, such as "resid_pre", "attn_out" or "mlp.post". Its first axes must be
        batch and position.
      metric: a function from the model's output to one number.

    Returns:
      The metric of each run.

    Raises:
      UserError: the prompts differ in shape, or the model has no such value.
    """
    if source.shape != target.shape:
        raise UserError(
            f"the source has shape {source.shape} and the target {target.shape}: patching by position needs prompts "
            "with the same number of tokens"
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
