"""What a monitor is: a score for each conversation, at a cost. A high score is suspicious.

monitor.scores(data)        [example]
monitor.costs(data)         [example], in monitor.cost.unit

`ModelMonitor`s score with a model that keeps the contract of surgery. Their score is a pure function of tokens, so an
attack can differentiate it.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.length_batches import LengthBatch, length_batches
from jax_interp.probes.text_reader import mesh_of_leaves
from jax_interp.probes.token_rules import TokenRule, tokens_of
from jax_interp.surgery import Add, Model, at, edit
from jax_interp.training.meshes import row_shards
from jax_interp.training.placement import automatic, placed

Access = Literal["white box", "black box"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What it costs to score a text: `per_example + per_token × (number of its tokens)`.

    Args:
      per_example: the part that does not depend on the length.
      per_token: the part for each real token.
      unit: the unit, such as "FLOP", "s" or "$". Costs of different units cannot be added.
    """

    per_example: float = 0.0
    per_token: float = 0.0
    unit: str = "FLOP"

    def __post_init__(self):
        for name, value in (("per_example", self.per_example), ("per_token", self.per_token)):
            if not (np.isfinite(value) and value >= 0):
                raise UserError(f"a cost is finite and not negative, and {name} is {value}")

    def of(self, data: LabelledTokens) -> Float[np.ndarray, " example"]:
        """The cost of each example."""
        return self.per_example + self.per_token * data.mask.sum(axis=1).astype(np.float64)

    def __add__(self, other: Cost) -> Cost:
        if self.unit != other.unit:
            raise UserError(f"one cost is in {self.unit} and another in {other.unit}: give both in one unit")
        return Cost(self.per_example + other.per_example, self.per_token + other.per_token, self.unit)


FREE = Cost()


def forward_cost(model: Model) -> Cost:
    """2 FLOP for each parameter and token: the usual estimate of a forward pass (Kaplan et al. 2020, §2.1).

    It counts the input embedding, which costs nothing if it is not the unembedding too, and leaves out the products of
    queries and keys. Give a measured `Cost` where this matters.
    """
    return Cost(per_token=2.0 * sum(leaf.size for leaf in jax.tree.leaves(model) if hasattr(leaf, "size")))


class Monitor(abc.ABC):
    """A score over conversations. A subclass has the fields `name` and `cost`, and defines `_scores`."""

    access: ClassVar[Access] = "black box"
    """Whether the monitor reads values inside the model that it watches, or only text."""
    name: str
    """The name in tables. The monitors of one evaluation have different names."""
    cost: Cost

    @abc.abstractmethod
    def _scores(self, data: LabelledTokens) -> Float[np.ndarray, " example"]:
        """The score of each example. `scores` checks it."""

    def scores(self, data: LabelledTokens) -> Float[np.ndarray, " example"]:
        """The score of each example, in float64.

        Raises:
          UserError: there is no example, or a score is not finite.
        """
        if not len(data):
            raise UserError(f"{data.name} has no example to score")
        found = np.asarray(self._scores(data), np.float64)
        if found.shape != (len(data),):
            raise UserError(
                f"{self.name} gave scores of shape {found.shape} for the {len(data)} examples of {data.name}"
            )
        if not (finite := np.isfinite(found)).all():
            row = int(np.argmin(finite))
            raise UserError(f"{self.name} gave the score {found[row]} to example {row} of {data.name}")
        return found

    def costs(self, data: LabelledTokens) -> Float[np.ndarray, " example"]:
        """The cost of each example, in `cost.unit`."""
        return self.cost.of(data)


class ModelMonitor(Monitor):
    """A monitor that scores with a model: a frozen dataclass that is registered as a pytree.

    A subclass has the fields `model`, `rule` and `batch`, and defines `score`.
    """

    model: Model
    rule: TokenRule
    """The tokens that count, such as Span("assistant")."""
    batch: int
    """The number of examples in one forward pass."""

    @abc.abstractmethod
    def score(
        self,
        tokens: Int[Array, "example pos"],
        mask: Bool[Array, "example pos"] | None,
        read: Bool[Array, "example pos"],
        shift: Float[Array, "example pos d"] | None = None,
    ) -> Float[Array, " example"]:
        """The score of each example: a pure function of arrays.

        Args:
          tokens: the tokens, padded on the right.
          mask: True at real tokens. None: there is no padding.
          read: the tokens that count.
          shift: what is added to the embeddings. Attacks differentiate by it.
        """

    def _scores(self, data: LabelledTokens) -> Float[np.ndarray, " example"]:
        read, padded, place = tokens_of(self.rule, data), not data.mask.all(), mesh_of_leaves(self)
        ways = 1 if place is None else row_shards(place)
        found = np.empty(len(data))
        with placed(place, lambda _: ()) as there:
            masked = padded and _takes_mask(self, data.tokens.shape[1])
            if padded and not masked and not data.mask[:, 0].all():
                raise UserError(f"{self.name}: the model takes no mask, and {data.name} is padded on the left")
            some = length_batches(data.mask, self.batch, multiple=ways, exact=padded and not masked)
            inputs = there.batches(lambda number: _cut(data, read, some[number], masked, ways))
            for number, batch in enumerate(some):
                scores = _scored(self, *inputs(number))
                found[batch.rows] = on_host(scores)[: len(batch.rows)]
        return found


def _takes_mask(monitor: ModelMonitor, length: int) -> bool:
    tokens, real = jax.ShapeDtypeStruct((1, length), jnp.int32), jax.ShapeDtypeStruct((1, length), jnp.bool_)
    try:
        jax.eval_shape(automatic(_score), monitor, tokens, real, real)
    except TypeError as error:  # of Python, for a keyword that a function does not have
        if "unexpected keyword argument 'mask'" not in str(error):
            raise
        return False
    return True


def _cut(data: LabelledTokens, read: np.ndarray, batch: LengthBatch, masked: bool, ways: int) -> tuple[Any, Any, Any]:
    # twice as many rows each time, so that sets of all sizes share few programs
    extra = ways * 2 ** int(np.ceil(np.log2(len(batch.filled) / ways))) - len(batch.filled)
    rows, until = np.pad(batch.filled, (0, extra), mode="edge"), slice(batch.length)
    return data.tokens[rows, until], data.mask[rows, until] if masked else None, read[rows, until]


def _score(monitor: ModelMonitor, tokens: Array, mask: Array | None, read: Array) -> Array:
    return monitor.score(tokens, mask, read)


_scored = jax.jit(automatic(_score))


def shifted(model: Model, shift: Float[Array, "example pos d"] | None, embed: str = "embed") -> Model:
    """The model with something added to the embeddings of its tokens.

    Args:
      model: the model.
      shift: what is added. None: nothing.
      embed: the address of the embeddings, before positions are added.
    """
    return model if shift is None else edit(model, at(embed, Add(shift)))


def masked(mask: Bool[Array, "example pos"] | None) -> dict[str, Any]:
    """The keyword arguments of a model for a mask: none without padding, so that models without `mask=` work."""
    return {} if mask is None else {"mask": mask}
