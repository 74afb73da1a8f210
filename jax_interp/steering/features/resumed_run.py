"""One run of a model on some texts, and the same run under many edits: blocks before the first edit run once."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Edit, Model, block_inputs, depth_of, edit, resumed
from jax_interp.surgery.address import Address
from jax_interp.surgery.taps import static
from jax_interp.training.placement import automatic


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ResumedRun:
    """Texts, and the input of the first block that edits change.

    Args:
      tokens: the texts.
      stream: the input of the block. None: every run starts at the tokens.
      layer: the number of the block.
    """

    tokens: Int[Array, "text pos"]
    stream: PyTree | None
    layer: int = static(default=0)

    def output(self, model: Model, edits: tuple[Edit, ...]) -> Any:
        """The output of the model under edits that change nothing before the block."""
        begun = model if self.stream is None else resumed(model, self.layer, self.stream, fixed=True)
        return edit(begun, *edits)(self.tokens)


def resumable_layer(model: Model, edits: tuple[Edit, ...], tokens: Any) -> int | None:
    """The first block that edits change. None: the model cannot be resumed there, so its runs start at the tokens."""
    depth = depth_of(model)
    layers = [Address.parse(one.address).resolve(depth) for one in edits] if depth else [None]
    if None in layers:
        return None
    layer = min(min(numbers) for numbers in layers if numbers)
    if layer == 0:
        return None

    def look(model: Model, edits: tuple[Edit, ...], tokens: Array) -> Any:
        return begin(model, tokens, layer).output(model, edits)

    try:
        jax.eval_shape(automatic(look), model, edits, tokens)
    except UserError:  # it does not run its blocks by `run_blocks`, or an edit carries a value from block to block
        return None
    return layer


def begin(model: Model, tokens: Int[Array, "text pos"], layer: int | None) -> ResumedRun:
    """Run the blocks before `layer`. None: nothing is run yet."""
    if layer is None:
        return ResumedRun(tokens, None)
    _, streams = block_inputs(model)(tokens)
    return ResumedRun(jnp.asarray(tokens), jax.tree.map(lambda leaf: leaf[layer], streams), layer)
