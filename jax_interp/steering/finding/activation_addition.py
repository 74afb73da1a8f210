"""Activation addition (ActAdd): the difference of two prompts, position by position, added to the first positions.

added = activation_addition(model, ids("Love "), ids("Hate "), "blocks.6.resid_pre", pad_id=space)
steered = edit(model, *added.edits(5.0))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.labelled_ids import from_tokens
from jax_interp.probes.text_reader import TextReader
from jax_interp.steering.applying.windows import prompt
from jax_interp.steering.finding.reading import read_values
from jax_interp.steering.placement import placed
from jax_interp.steering.vector import Strength
from jax_interp.surgery import Edit, Model, TokenEdit, ValueTokens, at
from jax_interp.surgery.value_tokens import wide


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AddAtStart(TokenEdit):
    """Add one vector to each of the first positions of a text. Later tokens keep their bits.

    Args:
      vectors: the vector of each position.
      strength: the factor; a number, or one for each row, `[batch, 1]`.
    """

    vectors: Float[Array, "start d"]
    strength: Strength = 1.0

    def __call__(self, x: Array, tokens: ValueTokens) -> Array:
        position = tokens.absolute(x)
        inside = (position >= 0) & (position < len(self.vectors))
        vector = self.vectors[jnp.clip(position, 0, len(self.vectors) - 1)].astype(wide(x).dtype)
        strength = jnp.broadcast_to(jnp.asarray(self.strength, vector.dtype), x.shape[:-1])
        added = (wide(x) + strength[..., None] * vector).astype(x.dtype)
        return jnp.where(inside[..., None], added, x)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PromptDifference:
    """The difference of two prompts at some addresses. It is a `Steering`.

    Args:
      vectors: the vector of each position, by address.
    """

    vectors: Mapping[str, Float[Array, "start d"]]

    def edits(self, strength: Strength = 1.0) -> tuple[Edit, ...]:
        """The edits that add `strength` times the vectors to the first tokens of a prompt. New tokens of a text that is
        generated are not steered, also if the prompt is shorter than the vectors."""
        every = [at(address, AddAtStart(vectors, strength)) for address, vectors in self.vectors.items()]
        return placed(every, prompt())


def activation_addition(
    model: Model,
    positive: Sequence[int],
    negative: Sequence[int],
    sites: str | Sequence[str],
    *,
    pad_id: int | None = None,
) -> PromptDifference:
    """The values of one prompt minus those of another one, at each position (Turner et al. 2023, arXiv:2308.10248).

    Args:
      model: any model that names its values.
      positive: the token ids of the prompt to steer towards, with BOS if the prompts that are steered have it.
      negative: the token ids of the prompt to steer away from.
      sites: addresses of values `[batch, pos, d]`. The published method adds at `resid_pre` of one layer.
      pad_id: the token that makes the shorter prompt as long as the other one, at its end. The published method takes
        the token of a space.

    Raises:
      UserError: a prompt has no token, the lengths differ and there is no `pad_id`, or both prompts are equal.
    """
    rows = [list(positive), list(negative)]
    if not all(rows):
        raise UserError("both prompts need at least one token")
    size = max(map(len, rows))
    if pad_id is None and len(rows[0]) != len(rows[1]):
        raise UserError(
            f"the prompts have {len(rows[0])} and {len(rows[1])} tokens: give pad_id=, the token of a space, or "
            "prompts of one length"
        )
    tokens = np.asarray([row + [pad_id] * (size - len(row)) for row in rows], np.int32)
    if (tokens[0] == tokens[1]).all():
        raise UserError("both prompts are the same tokens, so their difference is 0")
    reader = TextReader.of(model, from_tokens(tokens, label=np.asarray([1, 0])), sites, 2, None)
    values = read_values(tuple(reader.widths), model, jnp.asarray(tokens))
    found = {site: x[0] - x[1] for site, x in zip(reader.widths, values, strict=True)}
    if not all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found)):
        raise UserError("a value of the prompts is not finite: look for NaN in the model and its edits")
    return PromptDifference(found)
