"""The page of a decomposition run: its figures and log, and its strongest components on held-out data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dashboards.components import WINDOWS, MatrixDashboard, component_dashboards
from jax_interp.dashboards.statistics import TokenShares, Windows
from jax_interp.decomposition.top_components import TopComponents, top_components
from jax_interp.decomposition.train import Trained
from jax_interp.recipes.decomposition import HeldOut


@dataclass(frozen=True)
class Shown:
    """How much of a decomposition its page shows."""

    components: int | None = None
    """Of every matrix, the most important first; default: 6, of a toy model 40."""
    windows: int = 6
    """Pieces of text for each component, of a language model."""
    sequences: int = 128
    """Held-out sequences (of a toy model: times a hundred inputs) to look for them in."""

    def __post_init__(self) -> None:
        for name in ("components", "windows", "sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")


def page(
    result: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    name: str,
    trained: Trained,
    held_out: HeldOut,
    shown: Shown,
) -> str:
    """The page of a run, from its evaluation and its log."""
    from jax_interp.views.decomposition_report import render

    return render(result, records, name, found_on(trained, held_out, shown))


def found_on(trained: Trained, held_out: HeldOut, shown: Shown) -> dict[str, Any]:
    """The strongest components as `views.component_cards` takes them."""
    if held_out.strings is None:
        twins = {twin for _, twin in trained.model.tied}
        found = top_components(trained, held_out.batches, shown.components or 40)
        matrices = [_matrix(name, one, [{}] * len(one.mean)) for name, one in found.items() if name not in twins]
        return {"rows": sum(int(np.sum(keep)) for _, keep in held_out.batches), "threshold": 0.1, "matrices": matrices}
    windows = dataclasses.replace(WINDOWS, k=shown.windows)
    found = component_dashboards(trained, held_out.batches, n=shown.components or 6, windows=windows)
    strings = {-1: None} | dict(enumerate(held_out.strings(range(len(found.token_counts)))))
    return {
        "rows": int(found.token_counts.sum()),
        "threshold": found.threshold,
        "matrices": [_matrix(name, one.strongest, _cards(one, strings)) for name, one in found.matrices.items()],
        "passages": [
            {
                "tokens": [strings[int(token)] for token in tokens],
                "importance": {name: one.passages[:, i] for name, one in found.matrices.items()},
            }
            for i, tokens in enumerate(found.passage_tokens)
        ],
    }


def _matrix(name: str, one: TopComponents, cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures = zip(one.components, one.mean, one.rate)
    own = [{"component": int(c), "mean": float(mean), "rate": float(rate)} for c, mean, rate in figures]
    return {
        "name": name, "C": one.C, "alive": one.alive, "V": one.V, "U": one.U,
        "cards": [card | dict(more) for card, more in zip(own, cards)],
    }  # fmt: skip


def _cards(found: MatrixDashboard, strings: Mapping[int, str | None]) -> list[dict[str, Any]]:
    return [
        {
            "inputs": _tokens(found.inputs, i, strings),
            "predicted": _tokens(found.predicted, i, strings),
            "windows": [
                _window(found.windows, i, j, strings)
                for j in range(found.windows.peak.shape[1])
                if found.windows.peak[i, j] > 0
            ],
        }
        for i in range(len(found.strongest.components))
    ]


def _tokens(shares: TokenShares, card: int, strings: Mapping[int, str | None]) -> list[tuple[str | None, float, float]]:
    """Those that are more frequent where the component is important than elsewhere, and seen to be."""
    both = zip(shares.tokens[card], shares.share[card], shares.lift[card])
    return [(strings[int(token)], float(share), float(lift)) for token, share, lift in both if lift > 1.1]


def _window(windows: Windows, card: int, i: int, strings: Mapping[int, str | None]) -> dict[str, Any]:
    there = np.flatnonzero(windows.tokens[card, i] >= 0)
    span = slice(there[0], there[-1] + 1)
    return {
        "tokens": [strings[int(token)] for token in windows.tokens[card, i, span]],
        "importance": windows.scores[card, i, span].tolist(),
        "activation": windows.activations[card, i, span].tolist(),
        "peak": int(windows.before - there[0]),
    }
