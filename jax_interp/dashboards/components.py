"""Dashboards of the components of a decomposed language model: where in a text each component is important.

    found = component_dashboards(trained, batches, n=6)
    one = found.matrices["blocks.2.mlp.up"]
    one.strongest.components     the n components of the matrix with the largest mean importance
    one.inputs.tokens            input tokens on which they are important, [component, token]
    one.predicted.tokens         predicted tokens for which they are important
    one.windows                  the most important positions, with context
    one.passages                 the importance at each position of a few sequences

The text is read twice: once to choose the components, and once to collect the positions where they are important. A
leaky sigmoid can give an importance below zero, which counts as zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import Scores, collect
from jax_interp.dashboards.statistics import InputTokens, Passages, PredictedTokens, TokenShares, TopWindows
from jax_interp.dashboards.windows import Windows
from jax_interp.data.harvest import TokenBatch
from jax_interp.decomposition.importance.base import inner_activations
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.decomposition.top_components import TopComponents, layer_address, target_and_importance, top_components
from jax_interp.decomposition.train import Trained

WINDOWS = TopWindows(8, before=20, after=20, one_per_sequence=True, threshold=0.1)
PASSAGES = Passages(2, length=40)


@dataclasses.dataclass(frozen=True)
class MatrixDashboard:
    """The dashboard of one matrix: where its strongest components are important.

    Args:
      strongest: the components with the largest mean importance.
      inputs: the tokens that stand out at positions where a component is important.
      predicted: the tokens that stand out among the predictions at these positions.
      windows: the most important positions of each component, at most one per sequence. `scores` are importances, and
        `activations` are ‖U_c‖ (x V_c).
      passages: the importances on `ComponentDashboards.passage_tokens`.
    """

    strongest: TopComponents
    inputs: TokenShares
    predicted: TokenShares
    windows: Windows
    passages: Float[np.ndarray, "component seq pos"]


@dataclasses.dataclass(frozen=True)
class ComponentDashboards:
    """The dashboards of all matrices.

    Args:
      matrices: the dashboard of each matrix, by its address, such as `blocks.2.mlp.up`.
      token_counts: the number of kept positions with each token.
      threshold: a position has a window if its importance is above this.
      passage_tokens: the tokens of the passages. They are the ends of the sequences of the first batch with the largest
        total importance of all chosen components. -1 where not kept.
    """

    matrices: dict[str, MatrixDashboard]
    token_counts: Int[np.ndarray, " vocab"]
    threshold: float
    passage_tokens: Int[np.ndarray, "seq pos"]


def component_dashboards(
    trained: Trained,
    batches: Sequence[TokenBatch],
    *,
    n: int = 6,
    windows: TopWindows = WINDOWS,
    tokens: int = 12,
    passages: Passages = PASSAGES,
) -> ComponentDashboards:
    """Choose the strongest components of every matrix, and collect where they are important.

    Args:
      trained: the decomposed language model; its output must be logits.
      batches: pairs `(tokens, keep)`. They are read twice.
      n: the number of components of each matrix.
      windows: the number and the size of windows, and their threshold of importance. A component also counts as alive
        only if its importance is above this threshold.
      tokens: the number of tokens that stand out.
      passages: the number and the length of passages.

    Returns:
      A dashboard for every matrix. Each layer of a stack is a separate matrix.

    Raises:
      UserError: there is no batch.
    """
    if not len(batches):
        raise UserError("there are no batches: give at least one (tokens, keep)")
    threshold = float(windows.threshold)
    chosen = top_components(trained, batches, n, threshold)
    places, rows = component_places(trained, chosen)
    statistics = {"inputs": InputTokens(), "predicted": PredictedTokens(), "windows": windows, "passages": passages}
    found = collect(ComponentScores(places), trained, batches, statistics)
    inputs, predicted = found["inputs"].standing_out(tokens), found["predicted"].standing_out(tokens)
    matrices = {
        name: MatrixDashboard(
            chosen[name],
            _rows_of(inputs, own),
            _rows_of(predicted, own),
            _rows_of(found["windows"], own),
            found["passages"].scores[own],
        )
        for name, own in ((name, rows[name]) for name in chosen)
    }
    return ComponentDashboards(matrices, found["inputs"].count, threshold, found["passages"].tokens)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ComponentScores:
    """The score function of a decomposed model: importances of some components, their activations, and the logits.

    Args:
      places: for every entry of the decomposition, the layer and the component of each unit, each [unit]. Units are
        sorted by the name of the entry.
    """

    places: dict[str, tuple[Int[Array, " unit"], Int[Array, " unit"]]]

    def __call__(self, trained: Trained, tokens: Int[Array, "seq pos"]) -> Scores:
        logits, inputs, importances = target_and_importance(trained, tokens)
        inner = inner_activations(trained.model, inputs)
        scores, activations = [], []
        for name in sorted(self.places):
            layers, components = self.places[name]
            stacked = (lambda v: v) if is_stacked(name) else (lambda v: v[None])
            U = stacked(trained.model.of(name).U.astype(jnp.float32))
            norm = jnp.linalg.norm(U, axis=-1)[layers, components]
            scores.append(stacked(importances[name])[layers, :, :, components])
            a = stacked(inner[name]).astype(jnp.float32)[layers, :, :, components]
            activations.append(a * norm[:, None, None])
        by_row = lambda parts: jnp.concatenate(parts).reshape(sum(map(len, parts)), tokens.size).T
        return Scores(by_row(scores), by_row(activations), logits)


Arrays = TypeVar("Arrays", TokenShares, Windows)


def _rows_of(values: Arrays, own: slice) -> Arrays:
    """The rows of `values` that belong to one matrix."""
    arrays = {name: v[own] for name, v in vars(values).items() if isinstance(v, np.ndarray)}
    return dataclasses.replace(values, **arrays)


def component_places(
    trained: Trained, chosen: dict[str, TopComponents]
) -> tuple[dict[str, tuple[Array, Array]], dict[str, slice]]:
    """(layers and components of the units of each entry, slice of the units of each matrix among all units)."""
    places, rows, first = {}, {}, 0
    for entry in sorted(trained.model.names):
        depth = trained.model.of(entry).V.shape[0] if is_stacked(entry) else None
        names = [layer_address(entry, layer) for layer in (range(depth) if depth is not None else [None])]
        layers = np.concatenate([np.full(len(chosen[name].components), i) for i, name in enumerate(names)])
        components = np.concatenate([chosen[name].components for name in names])
        places[entry] = (jnp.asarray(layers, jnp.int32), jnp.asarray(components, jnp.int32))
        for name in names:
            rows[name] = slice(first, first + len(chosen[name].components))
            first = rows[name].stop
    return places, rows
