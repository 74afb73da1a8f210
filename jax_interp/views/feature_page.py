"""One self-contained page of many features: a searchable list, a view of each feature, and a view of prompts.

The page is drawn from plain data. "Feature" stands for any unit with a score at every token: a latent, a component, a
neuron. The data is compressed in the page (`packed_arrays`), and a script of the page shows what is asked for. The page
works from a file, fetches nothing, and shows every text as text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.terminal import printable
from jax_interp.views.packed_arrays import (
    packed_arrays,
    packed_json,
    scaled_half,
    smallest_unsigned,
    used_rows,
)
from jax_interp.views.page import render_page
from jax_interp.views.tokens import spaced

LABEL_TOKENS = 3
"""The number of tokens that stand for a feature in lists."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number of each feature. The list can be sorted by it. NaN: not measured."""

    name: str
    values: Float[np.ndarray, " feature"]
    meaning: str = ""
    """One short sentence."""
    percent: bool = False
    """Whether the values are fractions, shown as percentages."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pieces of text of each feature, coloured by its score."""

    title: str
    tokens: Int[np.ndarray, "feature example window"]
    """Token ids. -1: nothing. An example without tokens is left out."""
    scores: Float[np.ndarray, "feature example window"]
    peak: int
    """The position of the token for which the example was chosen, in the window."""
    effects: Mapping[str, Float[np.ndarray, "feature example window"]] = dataclasses.field(default_factory=dict)
    """More numbers of each token, by their names. A reader can colour the tokens by them. NaN: not measured."""


@dataclasses.dataclass(frozen=True)
class RankedTokens:
    """Tokens with one number each, such as promoted tokens and the change of their logits. -1: nothing."""

    title: str
    tokens: Int[np.ndarray, "feature n"]
    values: Float[np.ndarray, "feature n"]


@dataclasses.dataclass(frozen=True)
class Related:
    """Other features with one number each, such as decoder neighbours and their cosines. -1: nothing."""

    title: str
    features: Int[np.ndarray, "feature n"]
    """Indices as in `FeaturePage.features`. A feature that is not on the page has no link."""
    values: Float[np.ndarray, "feature n"]
    meaning: str = ""


@dataclasses.dataclass(frozen=True)
class Histogram:
    """A histogram of each feature. The edges are shared, or each feature has its own."""

    title: str
    counts: Int[np.ndarray, "feature bin"]
    edges: Float[np.ndarray, " edge"] | Float[np.ndarray, "feature edge"]
    meaning: str = ""
    logarithmic: bool = False
    """Whether the heights are logarithms of the counts."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text with the features that are active at each of its tokens."""

    tokens: Int[np.ndarray, " pos"]
    features: Sequence[Int[np.ndarray, " active"]]
    """The active features of each token, by their indices."""
    scores: Sequence[Float[np.ndarray, " active"]]


@dataclasses.dataclass(frozen=True)
class FeaturePage:
    """The content of a page."""

    title: str
    features: Int[np.ndarray, " feature"]
    """The index of each feature in its dictionary. The address `#f=INDEX` shows it."""
    strings: Callable[[Sequence[int]], Sequence[str]]
    """The strings of token ids."""
    density: Float[np.ndarray, " feature"]
    """The fraction of tokens on which each feature is active. 0: the feature never fired."""
    figures: Sequence[Figure] = ()
    examples: Sequence[Examples] = ()
    tokens: Sequence[RankedTokens] = ()
    related: Sequence[Related] = ()
    histograms: Sequence[Histogram] = ()
    prompts: Sequence[Prompt] = ()
    notes: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """A note of a feature, such as an explanation, by its index. The search reads notes."""
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """The name of a feature, by its index, where the index says too little."""
    description: str = ""
    """One sentence below the title."""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Named facts about the dictionary and the text."""
    unit: str = "feature"
    """What a feature is, in the singular: "feature", "component", "neuron"."""
    score: str = "activation"
    """What a score is."""
    kicker: str = "jax_interp dashboard"


def render(page: FeaturePage) -> str:
    """Render the page as one HTML document.

    Raises:
      UserError: two features have the same index, or a part has another number of features than the page.
    """
    _check(page)
    vocabulary = _Vocabulary(page)
    arrays = _arrays(page, vocabulary)
    described, blocks = packed_arrays(arrays)
    mentioned = _mentioned(page)
    plain = lambda texts: {str(i): printable(texts[i], keep="\n") for i in mentioned if i in texts}
    header = {
        "arrays": described,
        "strings": vocabulary.strings,
        "notes": plain(page.notes),
        "names": plain(page.names),
        "unit": page.unit,
        "score": page.score,
        "figures": [_described(figure, "name", "meaning", "percent") for figure in page.figures],
        "examples": [
            _described(part, "title", "peak") | {"values": [page.score, *map(printable, part.effects)]}
            for part in page.examples
        ],
        "tokens": [_described(part, "title") for part in page.tokens],
        "related": [_described(part, "title", "meaning") for part in page.related],
        "histograms": [_described(part, "title", "meaning", "logarithmic") for part in page.histograms],
        "prompts": len(page.prompts),
    }
    return render_page(
        "feature_page.html.j2",
        title=page.title,
        kicker=page.kicker,
        description=page.description,
        facts=page.facts,
        count=len(page.features),
        unit=page.unit,
        prompts=len(page.prompts),
        header=packed_json(header),
        blocks=blocks,
    )


class _Vocabulary:
    """The tokens of a page: the table of their strings, and the place of each id in it. 0 stands for no token."""

    def __init__(self, page: FeaturePage) -> None:
        parts = [*page.examples, *page.tokens, *page.prompts]
        self.ids = used_rows([part.tokens for part in parts])
        shown = page.strings([int(i) for i in self.ids]) if len(self.ids) else ()
        self.strings = ["", *(spaced(printable(text)) for text in shown)]
        self._place = np.zeros(int(self.ids.max(initial=-1)) + 2, np.int64)  # the last entry is that of -1
        self._place[self.ids] = np.arange(1, len(self.ids) + 1)

    def place(self, tokens: Int[np.ndarray, "..."]) -> np.ndarray:
        return smallest_unsigned(self._place[np.maximum(np.asarray(tokens, np.int64), -1)], len(self.ids))


def _arrays(page: FeaturePage, vocabulary: _Vocabulary) -> dict[str, np.ndarray]:
    """All arrays of the page, by the names that its script uses."""
    arrays: dict[str, np.ndarray] = {
        "features": page.features.astype(np.int32),
        "density": page.density.astype(np.float32),
        "labels": vocabulary.place(_label_tokens(page)),
    }
    for i, figure in enumerate(page.figures):
        arrays[f"figure{i}"] = figure.values.astype(np.float32)
    for i, part in enumerate(page.examples):
        arrays[f"example{i}.tokens"] = vocabulary.place(part.tokens)
        for j, values in enumerate((part.scores, *part.effects.values())):
            arrays[f"example{i}.values{j}"], arrays[f"example{i}.scale{j}"] = scaled_half(values)
    for i, part in enumerate(page.tokens):
        arrays[f"tokens{i}"] = vocabulary.place(part.tokens)
        arrays[f"tokens{i}.values"] = part.values.astype(np.float32)
    for i, part in enumerate(page.related):
        arrays[f"related{i}"] = part.features.astype(np.int32)
        arrays[f"related{i}.values"] = part.values.astype(np.float32)
    for i, part in enumerate(page.histograms):
        arrays[f"histogram{i}"] = part.counts.astype(np.uint32)
        arrays[f"histogram{i}.edges"] = np.atleast_2d(part.edges).astype(np.float32)
    for i, prompt in enumerate(page.prompts):
        arrays[f"prompt{i}.tokens"] = vocabulary.place(prompt.tokens)
        arrays[f"prompt{i}.ends"] = np.cumsum([len(active) for active in prompt.features], dtype=np.int32)
        arrays[f"prompt{i}.features"] = np.concatenate([*prompt.features, np.zeros(0, np.int32)]).astype(np.int32)
        arrays[f"prompt{i}.scores"] = np.concatenate([*prompt.scores, np.zeros(0)]).astype(np.float32)
    return arrays


def _mentioned(page: FeaturePage) -> list[int]:
    """The indices of all features that the page names."""
    listed = [page.features, *(part.features.reshape(-1) for part in page.related)]
    listed += [active for prompt in page.prompts for active in prompt.features]
    return [int(i) for i in np.unique(np.concatenate(listed))]


def _label_tokens(page: FeaturePage) -> Int[np.ndarray, "feature label"]:
    """A few tokens that stand for each feature: the tokens at the peaks of its first examples, or promoted tokens."""
    labels = np.full((len(page.features), LABEL_TOKENS), -1, np.int64)
    if page.examples:
        candidates = page.examples[0].tokens[:, :, page.examples[0].peak]
    elif page.tokens:
        candidates = page.tokens[0].tokens
    else:
        return labels
    for row, tokens in zip(labels, candidates):
        distinct = list(dict.fromkeys(tokens[tokens >= 0].tolist()))[:LABEL_TOKENS]
        row[: len(distinct)] = distinct
    return labels


def _described(part: Any, *names: str) -> dict[str, Any]:
    values = {name: getattr(part, name) for name in names}
    return {name: printable(value) if isinstance(value, str) else value for name, value in values.items()}


def _check(page: FeaturePage) -> None:
    count = len(page.features)
    if not count:
        raise UserError(f"there are no {page.unit}s to show: choose at least one")
    if len(np.unique(page.features)) != count:
        raise UserError(f"a {page.unit} is chosen more than once: give each index once")
    sizes = {"density": page.density, **{figure.name: figure.values for figure in page.figures}}
    for part in (*page.examples, *page.tokens):
        sizes |= {part.title: part.tokens}
    sizes |= {part.title: part.features for part in page.related}
    sizes |= {part.title: part.counts for part in page.histograms}
    wrong = {name: len(values) for name, values in sizes.items() if len(values) != count}
    if wrong:
        raise UserError(f"the page has {count} {page.unit}s, but these parts have another number of rows: {wrong}")
