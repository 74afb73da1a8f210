"""The strongest components of a decomposition on held-out data, as plain values for `views.component_cards`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_interp.dashboards.components import WINDOWS, MatrixDashboard, component_dashboards
from jax_interp.dashboards.statistics import TokenShares
from jax_interp.dashboards.windows import Windows
from jax_interp.decomposition.top_components import TopComponents, top_components
from jax_interp.decomposition.train import Trained
from jax_interp.recipes.decomposition.config import PageOptions
from jax_interp.recipes.decomposition.method import HeldOut

MIN_LIFT = 1.1
"""A token is shown if it has at least this lift."""

Strings = Mapping[int, str | None]


def component_cards(trained: Trained, held_out: HeldOut, options: PageOptions) -> dict[str, Any]:
    """Find the strongest components of every matrix and what they are important for.

    Args:
      trained: the decomposition.
      held_out: the data.
      options: the numbers of components and windows.

    Returns:
      `rows` (the number of positions that were read), `threshold`, `matrices` with a card for each component, and for a
      language model `passages`.
    """
    if held_out.strings is None:
        twins = {twin for _, twin in trained.model.tied}
        found = top_components(trained, held_out.batches, options.components or 40)
        matrices = [_matrix(name, one, [{}] * len(one.mean)) for name, one in found.items() if name not in twins]
        return {"rows": sum(int(np.sum(keep)) for _, keep in held_out.batches), "threshold": 0.1, "matrices": matrices}
    windows = dataclasses.replace(WINDOWS, k=options.windows)
    found = component_dashboards(trained, held_out.batches, n=options.components or 6, windows=windows)
    strings: Strings = {-1: None} | dict(enumerate(held_out.strings(range(len(found.token_counts)))))
    passages = [
        {
            "tokens": [strings[int(token)] for token in tokens],
            "importance": {name: one.passages[:, i] for name, one in found.matrices.items()},
        }
        for i, tokens in enumerate(found.passage_tokens)
    ]
    return {
        "rows": int(found.token_counts.sum()),
        "threshold": found.threshold,
        "matrices": [_matrix(name, one.strongest, _on_text(one, strings)) for name, one in found.matrices.items()],
        "passages": passages,
    }


def _matrix(name: str, one: TopComponents, on_text: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures = zip(one.components, one.mean, one.rate, on_text)
    cards = [{"component": int(c), "mean": float(mean), "rate": float(rate), **more} for c, mean, rate, more in figures]
    return {"name": name, "C": one.C, "alive": one.alive, "V": one.V, "U": one.U, "cards": cards}


def _on_text(found: MatrixDashboard, strings: Strings) -> list[dict[str, Any]]:
    """Tokens and windows of each component."""
    windows = found.windows
    return [
        {
            "inputs": _tokens(found.inputs, i, strings),
            "predicted": _tokens(found.predicted, i, strings),
            "windows": [_window(windows, i, j, strings) for j in np.flatnonzero(windows.peak[i] > 0).tolist()],
        }
        for i in range(len(found.strongest.components))
    ]


def _tokens(shares: TokenShares, component: int, strings: Strings) -> list[tuple[str | None, float, float]]:
    """The tokens that are more frequent at positions where the component is important than at other positions."""
    columns = zip(shares.tokens[component], shares.share[component], shares.lift[component])
    return [(strings[int(token)], float(share), float(lift)) for token, share, lift in columns if lift > MIN_LIFT]


def _window(windows: Windows, component: int, i: int, strings: Strings) -> dict[str, Any]:
    assert windows.activations is not None
    kept = np.flatnonzero(windows.tokens[component, i] >= 0)
    span = slice(kept[0], kept[-1] + 1)
    return {
        "tokens": [strings[int(token)] for token in windows.tokens[component, i, span]],
        "importance": windows.scores[component, i, span].tolist(),
        "activation": windows.activations[component, i, span].tolist(),
        "peak": int(windows.before - kept[0]),
    }
