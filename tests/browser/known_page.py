"""A page of features whose content is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jax_interp.views.feature_page import (
    Examples,
    FeaturePage,
    Figure,
    Histogram,
    Prompt,
    RankedTokens,
    Related,
    render,
)

FEATURES, PEAK = 60, 3
STRINGS = ["def", "·self", ".", "x", "⏎····", "return", "·Self", "(", ")", "·not", "in", "·re", "turn", "ß", "日本"]


def known_page() -> FeaturePage:
    """Sixty features. Number 0 is dead; indices are not row numbers; some figures are NaN and some scores negative."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(0, len(STRINGS), shape)
    tokens, scores = draw(FEATURES, 4, 7), rng.normal(size=(FEATURES, 4, 7)) * (rng.random((FEATURES, 4, 7)) < 0.5)
    tokens[0], tokens[:, :, 0], tokens[5, 2:] = -1, -1, -1
    scores[tokens < 0] = 0
    density = np.concatenate([[0.0], 10 ** rng.uniform(-4, -0.1, FEATURES - 1)])
    loss = rng.normal(size=FEATURES)
    loss[::7] = np.nan
    effects = rng.normal(size=scores.shape)
    effects[:, 1:] = np.nan
    active = [rng.choice(FEATURES + 5, n, replace=False) * 3 for n in (5, 1, 0, 8)]
    prompts = [
        Prompt(draw(4), active, [rng.gamma(2, 2, len(units)) for units in active]),
        Prompt(draw(2), active[:2], [rng.normal(size=5), np.array([2.0])]),
    ]
    return FeaturePage(
        "A dictionary",
        np.arange(FEATURES) * 3,
        lambda ids: [STRINGS[i] for i in ids],
        density,
        figures=[Figure("largest", scores.max((1, 2))), Figure("loss effect", loss, "in nats")],
        examples=[Examples("Top", tokens, scores, PEAK, {"effect": effects}), Examples("Uniform", tokens, scores, 2)],
        tokens=[RankedTokens("Promoted", draw(FEATURES, 5), -np.sort(-rng.random((FEATURES, 5))))],
        related=[Related("Similar", rng.integers(0, FEATURES + 5, (FEATURES, 4)) * 3, rng.random((FEATURES, 4)))],
        histograms=[Histogram("Scores", rng.integers(0, 50, (FEATURES, 8)), np.linspace(-1, 1, 9))],
        prompts=prompts,
        notes={9: "says hello", 12: "a note about Zebras"},
        facts={"model": "tiny"},
    )


def written(content: FeaturePage, path: Path) -> str:
    path.write_text(render(content), encoding="utf-8")
    return path.as_uri()


def with_strings(content: FeaturePage, strings: list[str]) -> FeaturePage:
    """The content with other strings. The table is repeated for all ids."""
    return dataclasses.replace(content, strings=lambda ids: [strings[i % len(strings)] for i in ids])
