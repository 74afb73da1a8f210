"""What a bias at one value of a model does to a later value: the map that MELBO and DCT search.

    Z_t(θ) = the value at the target, at token t, if θ is added to the source at every token

Only the blocks from the source to the target are run. What comes before the source is computed once.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.token_rules import TokenRule, tokens_of
from jax_interp.surgery import Add, Address, Model, at, block_inputs, canonical, depth_of, edit, resumed, values_at
from jax_interp.surgery.taps import static
from jax_interp.surgery.value_tokens import wide


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
    """

    tokens: Int[Array, "prompt pos"]
    mask: Bool[Array, "prompt pos"]
    read: Bool[Array, "prompt pos"]
    stream: Float[Array, "prompt pos d"] | None
    clean: Float[Array, "prompt pos d"]
    where: Between = static()

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
    data: LabelledTokens | Int[np.ndarray, "prompt pos"],
    rule: TokenRule | None = None,
    *,
    rows: int = 1,
) -> Prompts:
    """Run the model once, and keep what the search needs.

    Args:
      where: the addresses.
      model: the model.
      data: the prompts, padded on either side; or token ids without padding.
      rule: the tokens at which the effect is read. None: as `where.last` says.
      rows: the number of prompts is filled up to a multiple of this, with rows that do not count.

    Raises:
      UserError: there is no prompt, an address is wrong, the values are not `[batch, pos, d]`, or the target does not
        depend on the source.
    """
    tokens, mask, read = _tokens(where, data, rule)
    filling = -len(tokens) % rows
    filled = lambda x: np.concatenate([x, np.repeat(x[-1:], filling, axis=0)])
    tokens, mask, read = filled(tokens), filled(mask), filled(read)
    read[len(read) - filling :] = False
    shapes = jax.eval_shape(lambda m: dict(values_at(m, where.source, where.target)(tokens, mask=mask)), model)
    for address in (where.source, where.target):
        if len(shape := shapes[canonical(address)].shape) != 3:
            raise UserError(f"{address} has the shape {shape}: a bias and its effect are read at [batch, pos, d]")
    first = where.first_block(depth_of(model))
    return _prompts(where, first, model, tokens, mask, read)


@partial(jax.jit, static_argnums=(0, 1))
def _prompts(where: Between, first: int | None, model: Model, tokens: Array, mask: Array, read: Array) -> Prompts:
    stream = None
    if first is not None:
        _, streams = block_inputs(model)(tokens, mask=mask)
        stream = streams[first]
    prompts = Prompts(tokens, mask, read, stream, jnp.zeros(()), where)
    theta = jnp.zeros(width_of(where.source, model, tokens, mask), jnp.float32)
    return dataclasses.replace(prompts, clean=_target(model, prompts, theta))


def width_of(address: str, model: Model, tokens: Array, mask: Array) -> int:
    """The width of a value."""
    found = jax.eval_shape(lambda m: values_at(m, address)(tokens, mask=mask)[canonical(address)], model)
    return found.shape[-1]
