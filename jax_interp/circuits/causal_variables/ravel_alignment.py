"""DAS and MDAS on RAVEL: one subspace of an entity's vector for each attribute (Huang et al. 2024, arXiv:2402.17700).

    result = align_ravel(model, "blocks.5.resid_post", prompts, RavelAlignment(AlignmentConfig(DAS(16))))
    result.table        [attribute, intervention, figure]: cause, isolation, disentangle

    cause          the fraction of pairs in which the answer becomes that of the source's entity
    isolation      the fraction in which an answer about another attribute stays: the mean over the other attributes
    disentangle    (cause + isolation) / 2

The pairs, splits and figures are those of `jax_interp.dictionaries.evaluation.ravel`, where masks over the latents of
dictionaries are measured; so the numbers can be set beside each other. DAS is trained on cause alone, MDAS on cause and
isolation together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jax_interp.circuits.causal_variables.accuracy import Estimate, interchange_accuracy, share
from jax_interp.circuits.causal_variables.align import AlignmentConfig, align
from jax_interp.circuits.causal_variables.controls import random_like
from jax_interp.circuits.causal_variables.features import Features, Whole
from jax_interp.circuits.causal_variables.interchange import Location
from jax_interp.circuits.causal_variables.interchange_data import InterchangeData
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.dictionaries.evaluation.ravel import EntityPrompt, Pairs, make_pairs
from jax_interp.surgery import Model

FIGURES = ("cause", "isolation", "disentangle")


@dataclasses.dataclass(frozen=True)
class RavelAlignment:
    """The settings of `align_ravel`.

    Args:
      config: the method and the training.
      pairs: pairs of each attribute, half of them for cause.
      train: the fraction of pairs, and of entities, for training. The others are the test.
      methods: "MDAS": trained on cause and isolation. "DAS": on cause alone.
      seed: of the division and of the pairs.
    """

    config: AlignmentConfig
    pairs: int = 5000
    train: float = 0.7
    methods: tuple[Literal["DAS", "MDAS"], ...] = ("MDAS", "DAS")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 4 or not 0 < self.train < 1:
            raise UserError(f"pairs={self.pairs}, train={self.train}: at least 4 pairs, and 0 < train < 1")
        if not self.methods or set(self.methods) - {"DAS", "MDAS"}:
            raise UserError(f"methods={self.methods}: give 'DAS', 'MDAS' or both")


@dataclasses.dataclass(frozen=True)
class RavelAlignmentResult:
    """The result of `align_ravel`.

    Args:
      table: the figures [attribute, intervention, figure]. Beside the methods stand a random subspace of the same
        dimension, the whole vector, and nothing. 0.5 is what no disentangling reaches.
      cause: by attribute and intervention, the cause with Wilson's interval over test pairs.
      features: by attribute and method, the learned features.
    """

    table: Labelled
    cause: dict[tuple[str, str], Estimate]
    features: dict[tuple[str, str], Features]


def align_ravel(
    model: Model, address: str, prompts: Sequence[EntityPrompt], settings: RavelAlignment
) -> RavelAlignmentResult:
    """Learn a subspace for each attribute at the last token of the entity, and measure it on other entities.

    Args:
      model: any causal model that returns logits [seq, pos, vocab].
      address: the value whose subspaces are learned.
      prompts: prompts that the model answers rightly (`known_prompts` of `dictionaries.evaluation.ravel`).
      settings: the settings.

    Raises:
      UserError: the prompts ask for fewer than two attributes, or too few values differ.
    """
    attributes, location = sorted({one.attribute for one in prompts}), Location(address, "entity")
    rows: list[list[list[float]]] = []
    cause: dict[tuple[str, str], Estimate] = {}
    learned: dict[tuple[str, str], Features] = {}
    names: list[str] = []
    for attribute in attributes:
        counts = (max(round(settings.pairs * f), 2) for f in (settings.train, 1 - settings.train))
        train, test = (
            make_pairs(prompts, attribute, n, split=split, train=settings.train, seed=settings.seed)
            for n, split in zip(counts, ("train", "test"))
        )
        chosen: dict[str, Features] = {}
        for method in settings.methods:
            pairs = train if method == "MDAS" else train[np.flatnonzero(np.asarray(train.cause))]
            found = align(model, ravel_data(pairs), location, settings.config)
            chosen[method] = learned[attribute, method] = found.features[0]
        first = next(iter(chosen.values()))
        chosen |= {"random subspace": random_like(first, jax.random.key(settings.seed)), "whole vector": Whole()}
        data, figures = ravel_data(test), []
        for name, one in chosen.items():
            right = interchange_accuracy(model, data, location, one).correct
            figures.append(ravel_figures(right, test))
            cause[attribute, name] = share(right[np.asarray(test.cause)])
        rows.append(figures)
        names = list(chosen)
    axes = {"attribute": attributes, "intervention": names, "figure": FIGURES}
    return RavelAlignmentResult(Labelled(np.asarray(rows), axes, "RAVEL"), cause, learned)


def ravel_data(pairs: Pairs) -> InterchangeData:
    """RAVEL's pairs as interchange data: every token of the answer is read, given the right ones before it."""
    following = jnp.concatenate([pairs.base[:, 1:], jnp.zeros_like(pairs.base[:, :1])], axis=1)
    reads = jnp.concatenate([pairs.answer[:, 1:], jnp.zeros_like(pairs.answer[:, :1])], axis=1)
    target = jnp.where(reads, following, -1).astype(jnp.int32)
    positions = {"entity": jnp.stack([pairs.base_position, pairs.source_position]).astype(jnp.int32)}
    return InterchangeData(pairs.base, pairs.source[None], target, target, positions)


def ravel_figures(right: Bool[np.ndarray, " pair"], pairs: Pairs) -> list[float]:
    """(cause, isolation, disentangle) of test pairs. Isolation is the mean over the other attributes."""
    cause, group = np.asarray(pairs.cause), np.asarray(pairs.group)
    isolation = float(np.mean([right[~cause & (group == one)].mean() for one in np.unique(group[~cause])]))
    caused = float(right[cause].mean())
    return [caused, isolation, (caused + isolation) / 2]
