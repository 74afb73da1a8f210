"""`BaseRun`: the run that the cells of a sweep change, and what they have in common with it.

A cell changes one value. Nothing before the changed layer depends on it, so the cell is the base run up to this layer,
and the model is resumed there (`surgery.resumed`). In a causal model nothing before the earliest changed position
depends on it either. There the keys and values of the base run are kept, and only later tokens are run.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jax_interp.circuits.contrast import Contrast, _parameters, inputs_of
from jax_interp.circuits.sweeps.by_type import ByType
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.cache import Cache
from jax_interp.surgery import Edit, Model, block_inputs, depth_of, edit, resumed
from jax_interp.surgery.taps import Wrapper


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BaseRun:
    """One run of a model on all prompts of a contrast.

    Args:
      tokens: the tokens that are run.
      metric: the metric of each prompt.
      streams: the input of every block, [layer, prompt, pos, ...]. None: the model cannot be resumed.
      cache: the keys and values of the whole text. None: earlier tokens cannot be reused.
    """

    tokens: Int[Array, "prompt pos"]
    metric: Float[Array, " prompt"]
    streams: PyTree | None
    cache: Cache | None

    def changed(
        self, model: Model, contrast: Contrast, edits: tuple[Edit, ...], layer: Int[Array, ""] | None, first: int
    ) -> Float[Array, " prompt"]:
        """The metric of each prompt under edits that change nothing before a layer and a position.

        Args:
          model: the model of this run.
          contrast: the metric and the mask.
          edits: the edits.
          layer: the first layer that they change. None: not known, or outside the blocks.
          first: the first column of the tokens that they change.
        """
        inputs = inputs_of(model, contrast)
        if layer is None or self.streams is None:
            return contrast.metric(edit(model, *edits)(self.tokens, **inputs))
        if self.cache is None or first == 0:
            stream = jax.tree.map(lambda leaf: leaf[layer], self.streams)
            return contrast.metric(edit(resumed(model, layer, stream), *edits)(self.tokens, **inputs))
        stream = jax.tree.map(lambda leaf: leaf[layer][:, first:], self.streams)
        filled = self.cache.valid & (jnp.arange(self.cache.slots) < first)[None]
        begun = dataclasses.replace(self.cache, length=jnp.int32(first), valid=filled)
        later = inputs if contrast.mask is None else {**inputs, "mask": contrast.mask[:, first:]}
        logits, _ = edit(resumed(model, layer, stream), *edits)(self.tokens[:, first:], cache=begun, **later)
        return contrast.metric(logits)


_resumable: ByType[bool] = ByType(64)


def base_run(model: Model, contrast: Contrast, tokens: Int[Array, "prompt pos"], *, reuse_tokens: bool) -> BaseRun:
    """Run a model on all prompts, and keep what the cells of a sweep need.

    Args:
      model: the model.
      contrast: the metric and the mask.
      tokens: the tokens to run.
      reuse_tokens: whether cells may leave out tokens before the first one that they change.
    """
    can_resume = _resumable.get((model, contrast), None, lambda: _can_resume(model, contrast, tokens))
    return _base_run(
        model, contrast, tokens, can_resume=can_resume, can_continue=can_resume and reuse_tokens and _is_causal(model)
    )


@jax.jit(static_argnames=("can_resume", "can_continue"))
def _base_run(model: Model, contrast: Contrast, tokens: Array, *, can_resume: bool, can_continue: bool) -> BaseRun:
    inputs, cache, streams = inputs_of(model, contrast), None, None
    if not can_resume:
        return BaseRun(tokens, contrast.metric(model(tokens, **inputs)), None, None)
    if can_continue and contrast.metric.last_only:
        (logits, cache), streams = block_inputs(model)(tokens, cache=tokens.shape[1], **inputs)
    else:
        logits, streams = block_inputs(model)(tokens, **inputs)
    return BaseRun(tokens, contrast.metric(logits), streams, cache)


def _can_resume(model: Model, contrast: Contrast, tokens: Array) -> bool:
    """Whether the model runs its blocks by `run_blocks`, and no edit carries a value from block to block."""
    if not depth_of(model):
        return False

    def look(tokens: Array, layer: Array) -> Any:
        inputs = inputs_of(model, contrast)
        _, streams = block_inputs(model)(tokens, **inputs)
        return resumed(model, layer, jax.tree.map(lambda leaf: leaf[layer], streams))(tokens, **inputs)

    try:
        jax.eval_shape(look, tokens, jax.ShapeDtypeStruct((), jnp.int32))
    except UserError:
        return False
    return True


def _is_causal(model: Model) -> bool:
    """Whether earlier tokens cannot depend on later ones: the model continues a text from a cache, and has no edits."""
    return not isinstance(model, Wrapper) and {"cache", "last_only"} <= _parameters(model)
