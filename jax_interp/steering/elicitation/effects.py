"""What a bias at one value of a model does to a later value: the map that MELBO and DCT search.

    Z_t(θ) = the value at the target, at token t, if θ is added to the source at every token

Only the blocks from the source to the target are run. What comes before the source is computed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.token_rules import TokenRule, tokens_of
from jax_interp.surgery import Add, Address, Model, at, block_inputs, canonical, depth_of, edit, resumed, values_at
from jax_interp.surgery.value_tokens import wide
from jax_interp.training import Placement, automatic
from jax_interp.training.meshes import row_shards


@dataclasses.dataclass(frozen=True)
class Between:
    """Where a bias is added and where its effect is read.

    Args:
      source: the address of the value that the bias is added to, such as "blocks.2.mlp_out", at every token.
      target: the address of a later value with the axes (batch, pos, d). The effect is read there.
      last: the number of real tokens at the end of each prompt at which the effect is read. None: at all of them. A
        token rule, given to `between_on`, replaces it.
    """

    source: str
    target: str
    last: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise UserError(f"last={self.last}: give a number of tokens, or None for all")
        for address in (self.source, self.target):
            if not Address.parse(canonical(address)).is_single:
                raise UserError(f"{address!r} names several layers: give one")

    def first_block(self, depth: int) -> int | None:
        """The block of the source: blocks before it need not be run again. None: the source is outside the blocks."""
        layers = Address.parse(canonical(self.source)).resolve(depth)
        return None if layers is None else layers[0]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts, and what does not depend on the bias.

    Args:
      tokens: the token ids.
      mask: True at real tokens.
      read: True at the tokens at which the effect is read. A row that is filling has none.
      stream: the input of the block of the source. None: the whole model is run.
      clean: the target without a bias, in at least float32.
      where: the addresses.
      width: the width of the source.
    """

    tokens: Int[Array, "prompt pos"]
    mask: Bool[Array, "prompt pos"]
    read: Bool[Array, "prompt pos"]
    stream: Float[Array, "prompt pos d"] | None
    clean: Float[Array, "prompt pos d"]
    where: Between = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})

    @property
    def count(self) -> Float[Array, ""]:
        """The number of prompts, without filling."""
        return jnp.sum(jnp.any(self.read, axis=1)).astype(jnp.float32)


def changes(model: Model, prompts: Prompts, theta: Float[Array, " d"]) -> Float[Array, "prompt pos d"]:
    """Z(θ) - Z(0) at every token.

    Args:
      model: the model.
      prompts: the prompts and the addresses.
      theta: the bias.
    """
    return _target(model, prompts, theta) - prompts.clean


def mean_change(model: Model, prompts: Prompts, theta: Float[Array, " d"]) -> Float[Array, " d"]:
    """The mean of Z(θ) - Z(0): over the tokens that are read in each prompt, then over the prompts."""
    found, read = changes(model, prompts, theta), prompts.read[..., None]
    many = jnp.maximum(jnp.sum(prompts.read, axis=1), 1).astype(found.dtype)
    of_prompt = jnp.sum(jnp.where(read, found, 0.0), axis=1) / many[:, None]
    return jnp.sum(of_prompt, axis=0) / prompts.count


def _target(model: Model, prompts: Prompts, theta: Float[Array, " d"]) -> Float[Array, "prompt pos d"]:
    where = prompts.where
    if prompts.stream is not None:
        first = where.first_block(depth_of(model))
        model = resumed(model, first, jax.lax.stop_gradient(prompts.stream), fixed=True)
    steered = edit(model, at(where.source, Add(theta)))
    return wide(values_at(steered, where.target)(prompts.tokens, mask=prompts.mask)[canonical(where.target)])


def between_on(
    where: Between,
    model: Model,
    data: LabelledTokens | Sequence[Sequence[int]] | Int[np.ndarray, "prompt pos"],
    rule: TokenRule | None = None,
    *,
    rows: int = 1,
) -> Prompts:
    """Run the model once, and keep what the search needs.

    Args:
      where: the addresses.
      model: the model.
      data: labelled prompts, of which the labels are not used; or the token ids of each prompt, of any lengths.
      rule: the tokens at which the effect is read, for labelled prompts. None: as `where.last` says.
      rows: the number of prompts is filled up to a multiple of this, with rows that do not count.

    Raises:
      UserError: there is no prompt, a prompt is empty, an address is wrong, the values are not `[batch, pos, d]`, or
        the target does not depend on the source.
    """
    if not len(data):
        raise UserError("there is no prompt")
    tokens, mask, read = _tokens(where, data, rule)
    filling = -len(tokens) % rows
    tokens, mask, read = (np.concatenate([x, np.repeat(x[-1:], filling, axis=0)]) for x in (tokens, mask, read))
    read[len(read) - filling :] = False
    shapes = jax.eval_shape(lambda m: dict(values_at(m, where.source, where.target)(tokens, mask=mask)), model)
    for address in (where.source, where.target):
        if len(shape := shapes[canonical(address)].shape) != 3:
            raise UserError(f"{address} has the shape {shape}: a bias and its effect are read at [batch, pos, d]")
    width = shapes[canonical(where.source)].shape[-1]
    source, target = (Address.parse(canonical(a)).resolve(depth_of(model)) for a in (where.source, where.target))
    after = source is None or target is None or target[0] >= source[0]
    prompts, depends = _prompts(where, width, model, tokens, mask, read) if after else (None, False)
    if prompts is None or not bool(depends):
        raise UserError(f"{where.target} does not depend on {where.source}: give a later value as the target")
    return prompts


def placed_prompts(there: Placement, where: Between, model: Model, data: Any, rule: TokenRule | None = None) -> Prompts:
    """`between_on`, with the prompts split over the rows of the mesh of a run."""
    if there.mesh is None:
        return between_on(where, model, data, rule)
    prompts = between_on(where, model, data, rule, rows=row_shards(there.mesh))
    return there.batches(lambda _: prompts)(0)


def each(function: Callable[..., Any], of: Any, at_once: int | None) -> Any:
    """`jax.vmap(function)(of)`, or `at_once` entries after each other."""
    return jax.lax.map(function, of, batch_size=at_once) if at_once else jax.vmap(function)(of)


def _tokens(where: Between, data: Any, rule: TokenRule | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens, which are real, and which are read."""
    if isinstance(data, LabelledTokens):
        tokens, mask = np.asarray(data.tokens, np.int32), np.asarray(data.mask)
    else:
        if rule is not None:
            raise UserError("a token rule needs labelled prompts (LabelledTokens); without them give last=")
        texts = [np.asarray(row, np.int32) for row in data]
        if any(not len(row) for row in texts):
            raise UserError("a prompt has no tokens")
        mask = np.arange(max(map(len, texts)))[None] < np.asarray([[len(row)] for row in texts], int)
        tokens = np.zeros(mask.shape, np.int32)
        tokens[mask] = np.concatenate(texts)
    if rule is not None:
        return tokens, mask, tokens_of(rule, data)
    to_end = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return tokens, mask, mask & (to_end <= (where.last or mask.shape[1]))


def _prepared(
    where: Between, width: int, model: Model, tokens: Array, mask: Array, read: Array
) -> tuple[Prompts, Bool[Array, ""]]:
    """The prompts, and whether the target changes with the source at all."""
    first, stream = where.first_block(depth_of(model)), None
    if first is not None:
        _, streams = block_inputs(model)(tokens, mask=mask)
        stream = streams[first]
    prompts = Prompts(tokens, mask, read, stream, jnp.zeros((), jnp.float32), where, width)
    target = lambda theta: _target(model, prompts, theta)
    along = jax.random.normal(jax.random.key(0), (width,), jnp.float32)
    clean, change = target(jnp.zeros_like(along)), jax.jvp(target, (along,), (along,))[1]
    return dataclasses.replace(prompts, clean=clean), jnp.any(jnp.where(read[..., None], change, 0.0) != 0)


_prompts = jax.jit(automatic(_prepared), static_argnums=(0, 1))
