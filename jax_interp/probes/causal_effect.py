"""`causal_effect`: does the model use what a probe reads? Move activations along the probe's direction and see.

moves = moves_along({"logistic": fitted, "mass-mean": other}, vectors, train=split.train)
effect = causal_effect(model, data, moves, ProbabilityDifference(true_ids, false_ids))
effect.nie("mass-mean", "positive")        normalised indirect effect, negative -> positive, with its interval
effect.lines()                             all directions, both ways, with the controls and the damage

Marks & Tegmark 2023 (arXiv:2310.06824). E± is the mean metric of the examples of a class, and E*± the
same with activations moved to the other class:

    NIE(- -> +) = (E*₋ - E₋) / (E₊ - E₋),        NIE(+ -> -) = (E*₊ - E₊) / (E₋ - E₊)

0: the move changes nothing. 1: moved examples are answered as those of the other class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.layer import upcast
from jax_interp.core.objectives import kl_divergence, log_probabilities
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.causal_report import CausalEffect
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.moves import Moves
from jax_interp.probes.token_rules import LAST, TokenRule, tokens_of
from jax_interp.surgery import Add, Model, at, edit, values_at

Metric = Callable[[Float[Array, "example 1 vocab"]], Float[Array, " example"]]


@runtime_checkable
class MetricOfRows(Protocol):
    """A metric with arrays that have one entry for each example, such as the metrics of `jax_interp.circuits`."""

    def rows(self, index: Int[Array, " row"], /) -> Any: ...

    def __call__(self, logits: Float[Array, "example 1 vocab"], /) -> Float[Array, " example"]: ...


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ProbabilityDifference:
    """P(one of the positive tokens) - P(one of the negative tokens), such as TRUE and FALSE with their spellings.

    Args:
      positive: token ids.
      negative: token ids.
    """

    positive: Int[Array, " k"] | Sequence[int]
    negative: Int[Array, " k"] | Sequence[int]

    def __call__(self, logits: Float[Array, "example 1 vocab"]) -> Float[Array, " example"]:
        p = jax.nn.softmax(upcast(logits)[:, -1])
        total = lambda ids: jnp.sum(p[:, jnp.atleast_1d(jnp.asarray(ids))], axis=-1)
        return total(self.positive) - total(self.negative)


@dataclasses.dataclass(frozen=True)
class CausalConfig:
    """Where and how far activations are moved.

    Args:
      rule: the tokens at which vectors are added.
      answer: the token whose logits the metric gets. A rule that names one token.
      ranges: ranges (first, end) of the sites of the moves, `end` not included. Vectors are added at all sites of a
        range at once; in a residual stream they add up. (): one range with all sites.
      alphas: factors of the vectors.
      unrelated_rule: the tokens of unrelated text at which vectors are added.
      batch: the number of examples in one forward pass.
      at_once: the number of moves (direction, range, alpha) that run side by side.
    """

    rule: TokenRule = LAST
    answer: TokenRule = LAST
    ranges: tuple[tuple[int, int], ...] = ()
    alphas: tuple[float, ...] = (1.0,)
    unrelated_rule: TokenRule = LAST
    batch: int = 32
    at_once: int = 1


def causal_effect(
    model: Model,
    data: LabelledTokens,
    moves: Moves,
    metric: Metric,
    config: CausalConfig | None = None,
    *,
    unrelated: LabelledTokens | None = None,
) -> CausalEffect:
    """Move activations along directions, and measure what the model then answers.

    Vectors are added to examples of the negative class and subtracted from those of the positive class, so one forward
    pass serves both ways. One program is compiled for all directions, ranges and factors.

    Args:
      model: any model that names its values.
      data: the examples, of two classes. They should not be those that the probes were fitted on.
      moves: the vectors, from `moves_along`.
      metric: a callable pytree from the logits at the answer token, `[example, 1, vocab]`, to one number for each
        example; larger for answers of the positive class. If it has `rows`, this chooses its entries for a batch.
      config: where and how far.
      unrelated: text on which the model should stay as it is. The damage is the KL divergence from the model's own
        predictions there, at the readable tokens from the first moved one on, the mean of both ways. None: not
        measured.

    Raises:
      UserError: the data do not have two classes, the answer rule names several tokens, a range is empty or not of
        these sites, or the metric is not one finite number for each example.
    """
    config = CausalConfig() if config is None else config
    ranges = config.ranges or ((0, len(moves.sites)),)
    _check(data, moves, ranges, config)
    vectors = _combinations(moves, ranges, config.alphas)
    moved_at, answer = tokens_of(config.rule, data), tokens_of(config.answer, data)
    if (answer.sum(axis=1) != 1).any():
        raise UserError(f"the rule {config.answer} names several tokens: the answer is read at one token")
    sign = np.where(data.labels == 0, 1, -1).astype(np.float32)
    parts = []
    for rows, filled in _batches(len(data), config.batch):
        own = metric.rows(jnp.asarray(filled)) if isinstance(metric, MetricOfRows) else metric
        places = moved_at[filled], answer[filled].argmax(axis=1), sign[filled]
        inputs = _inputs(data, filled)
        found = _measured(moves.sites, config.at_once, model, _pytree(own), vectors, inputs, places)
        parts.append([np.asarray(array)[..., : len(rows)] for array in found])
    clean, moved, norms = (np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True))
    if not np.isfinite(clean).all() or not np.isfinite(moved).all():
        raise UserError("the metric is not finite on some examples: look for NaN in the model, or for too large alphas")
    axes = {"direction": tuple(moves.of), "sites": _names(moves, ranges), "alpha": config.alphas}
    shape = tuple(map(len, axes.values()))
    damage = None if unrelated is None else Labelled(
        _damage(model, unrelated, moves, vectors, config).reshape(shape), axes, "KL divergence on unrelated text, nats"
    )  # fmt: skip
    relative = np.stack(list(moves.norms().values())) / norms.mean(axis=-1)[None, :]
    return CausalEffect(
        data=data.name,
        classes=data.classes,
        labels=data.labels,
        groups=np.arange(len(data)) if data.groups is None else data.groups,
        clean=clean,
        moved=Labelled(moved.reshape(*shape, -1), {**axes, "example": range(len(data))}, "metric"),
        relative_norm=Labelled(relative, {"direction": tuple(moves.of), "site": moves.sites}, "|v| / |x|"),
        damage=damage,
        controls=moves.controls,
    )


def _check(data: LabelledTokens, moves: Moves, ranges: tuple[tuple[int, int], ...], config: CausalConfig) -> None:
    if not np.issubdtype(data.labels.dtype, np.integer) or set(np.unique(data.labels)) != {0, 1}:
        raise UserError(f"{data.name} must have examples of exactly two classes: moves go from one to the other")
    if not config.alphas or not moves.of:
        raise UserError("give at least one alpha and one move")
    for first, end in ranges:
        if not 0 <= first < end <= len(moves.sites):
            raise UserError(f"the range ({first}, {end}) does not name some of the {len(moves.sites)} sites")


def _combinations(
    moves: Moves, ranges: tuple[tuple[int, int], ...], alphas: tuple[float, ...]
) -> Float[Array, "combination site d"]:
    """The vector of each site, for each direction, range and alpha."""
    number = np.arange(len(moves.sites))
    within = np.stack([(number >= first) & (number < end) for first, end in ranges])
    vectors = np.stack(list(moves.of.values()))[:, None, None] * within[None, :, None, :, None]
    vectors = vectors * np.asarray(alphas)[None, None, :, None, None]
    return jnp.asarray(vectors.reshape(-1, *vectors.shape[3:]), jnp.float32)


def _names(moves: Moves, ranges: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    one = lambda first, last: moves.sites[first] if first == last else f"{moves.sites[first]} to {moves.sites[last]}"
    return tuple(one(first, end - 1) for first, end in ranges)


def _batches(examples: int, batch: int) -> list[tuple[Int[np.ndarray, " row"], Int[np.ndarray, " filled"]]]:
    """(the rows of each batch; the same, filled up with the last row)."""
    if batch < 1:
        raise UserError(f"batch={batch} must be at least 1")
    batch = min(batch, examples)
    starts = range(0, examples, batch)
    whole = [np.arange(start, start + batch) for start in starts]
    return [(rows[rows < examples], np.minimum(rows, examples - 1)) for rows in whole]


def _inputs(data: LabelledTokens, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    return data.tokens[rows], None if data.mask.all() else data.mask[rows]


def _pytree(metric: Metric) -> Metric:
    return jax.tree_util.Partial(metric) if jax.tree_util.all_leaves([metric]) else metric


def _moved(model: Model, sites: tuple[str, ...], v: Array, sign: Array, moved_at: Array) -> Model:
    each = sign[None, :, None, None] * v[:, None, None, :]
    return edit(model, *(at(site, Add(each[i]), where=moved_at) for i, site in enumerate(sites)))


@partial(jax.jit, static_argnums=(0, 1))
def _measured(
    sites: tuple[str, ...],
    at_once: int,
    model: Model,
    metric: Metric,
    vectors: Float[Array, "combination site d"],
    inputs: tuple[Array, Array | None],
    places: tuple[Bool[Array, "row pos"], Int[Array, " row"], Float[Array, " row"]],
) -> tuple[Array, Array, Array]:
    """(metric [row], metric when moved [combination, row], mean norm of the values at the moved tokens [site, row])."""
    (tokens, mask), (moved_at, answer, sign) = inputs, places
    more: dict[str, Any] = {} if mask is None else {"mask": mask}

    def measured(model: Model) -> Array:
        found = metric(jnp.take_along_axis(model(tokens, **more), answer[:, None, None], axis=1))
        if jnp.shape(found) != answer.shape:
            raise UserError(f"the metric has shape {jnp.shape(found)}: give one number for each of {len(answer)} rows")
        return found.astype(jnp.float32)

    moved = lambda v: measured(_moved(model, sites, v, sign, moved_at))
    values = values_at(model, *sites)(tokens, **more)
    count = jnp.sum(moved_at, axis=1).astype(jnp.float32)
    size = lambda x: jnp.sum(jnp.linalg.norm(upcast(x), axis=-1), axis=1, where=moved_at) / count
    norms = jnp.stack([size(values[site]).astype(jnp.float32) for site in sites])
    return measured(model), jax.lax.map(moved, vectors, batch_size=at_once if at_once > 1 else None), norms


def _damage(
    model: Model, unrelated: LabelledTokens, moves: Moves, vectors: Array, config: CausalConfig
) -> Float[np.ndarray, " combination"]:
    """The mean KL divergence over unrelated texts, for each combination."""
    moved_at = tokens_of(config.unrelated_rule, unrelated)
    counted = unrelated.readable & (np.cumsum(moved_at, axis=1) > 0)
    total = np.zeros(len(vectors))
    for rows, filled in _batches(len(unrelated), config.batch):
        kept = counted[filled] & (np.arange(len(filled)) < len(rows))[:, None]
        found = _divergences(
            moves.sites, config.at_once, model, vectors, _inputs(unrelated, filled), moved_at[filled], kept
        )
        total += np.asarray(found, np.float64)
    if not np.isfinite(total).all():
        raise UserError(f"the predictions on {unrelated.name} are not finite: use smaller alphas")
    return total / counted.sum()


@partial(jax.jit, static_argnums=(0, 1))
def _divergences(
    sites: tuple[str, ...],
    at_once: int,
    model: Model,
    vectors: Float[Array, "combination site d"],
    inputs: tuple[Array, Array | None],
    moved_at: Bool[Array, "row pos"],
    counted: Bool[Array, "row pos"],
) -> Float[Array, " combination"]:
    """The sum over counted tokens of KL(model ‖ moved model), the mean of both ways."""
    tokens, mask = inputs
    more: dict[str, Any] = {} if mask is None else {"mask": mask}
    own = log_probabilities(model(tokens, **more))

    def one(v: Array) -> Array:
        def way(sign: float) -> Array:
            signs = jnp.full(len(tokens), sign, jnp.float32)
            other = log_probabilities(_moved(model, sites, v, signs, moved_at)(tokens, **more))
            return jnp.sum(jnp.where(counted, kl_divergence(own, other), 0.0))

        return (way(1.0) + way(-1.0)) / 2

    return jax.lax.map(one, vectors, batch_size=at_once if at_once > 1 else None)
