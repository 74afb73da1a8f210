"""Cause and isolation of a dictionary and of its baselines.

    cause          the fraction of pairs in which the model's answer becomes that of the source's entity
    isolation      the fraction in which an answer about another attribute stays: the mean over the other attributes
    disentangle    (cause + isolation) / 2

Exchanging nothing has the cause 0 and the isolation 1 (if the dictionary reconstructs well). Exchanging the whole
vector has about 1 and 0. So 0.5 is what no disentangling at all reaches. MIB (arXiv:2504.13151) has 0.40 for the full
vector, 0.49 for SAEs with a mask, and 0.60 for a learned rotation with a mask. A random dictionary has reached 0.73
where a trained one had 0.72 (arXiv:2602.14111), so the random column matters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.benchmarks.baselines import Compared
from jax_interp.dictionaries.evaluation.benchmarks.measure import REPLICATES, Estimate, Measure
from jax_interp.dictionaries.evaluation.controls import Basis
from jax_interp.dictionaries.evaluation.downstream import Identity
from jax_interp.dictionaries.evaluation.ravel.masks import (
    MaskConfig,
    entity_values,
    evaluate_mask,
    separation,
    train_mask,
)
from jax_interp.dictionaries.evaluation.ravel.pairs import Pairs, make_pairs
from jax_interp.dictionaries.evaluation.ravel.table import EntityPrompt, attributes_of
from jax_interp.dictionaries.sparse_coder import SparseCoder, as_sparse_coder
from jax_interp.surgery import Model

Method = Literal["mask", "separation", "all"]
ROTATION, WHOLE = "random rotation", "full vector"
SAEBENCH_MASK = MaskConfig()


@dataclasses.dataclass(frozen=True)
class RavelConfig:
    """The settings of `ravel`."""

    pairs: int = 5000
    """Pairs of each attribute, half of them for cause."""
    train: float = 0.7
    """The fraction of pairs, and of entities, for choosing latents. The others are the test."""
    mask: MaskConfig = SAEBENCH_MASK
    methods: tuple[Literal["mask", "separation"], ...] = ("mask", "separation")
    """"mask": learned. "separation": the k latents with the largest F ratio between the values of the attribute; the
    best k on the training pairs."""
    ks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 4 or not 0 < self.train < 1:
            raise UserError(f"pairs={self.pairs}, train={self.train}: at least 4 pairs, and 0 < train < 1")
        if not self.methods or set(self.methods) - {"mask", "separation"}:
            raise UserError(f"methods={self.methods}: give 'mask', 'separation' or both")
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"ks={self.ks}: give numbers of latents of at least 1")


SAEBENCH = RavelConfig()
"""The settings of SAEBench, with selection by separation beside the mask."""


@dataclasses.dataclass(frozen=True)
class AttributeScore:
    """The figures of one attribute, with bootstrap intervals of 95 % over test pairs.

    Args:
      attribute: the target attribute.
      coder: the dictionary or the baseline.
      method: how the latents were chosen. "all": the whole vector is exchanged.
      latents: the number of exchanged latents; the mean over reseeds of the random dictionary.
      cause: as in the module's docstring.
      isolation: as in the module's docstring.
      disentangle: as in the module's docstring.
    """

    attribute: str
    coder: str
    method: Method
    latents: float
    cause: Estimate
    isolation: Estimate
    disentangle: Estimate


@dataclasses.dataclass(frozen=True)
class RavelResult:
    """The result of `ravel`: figures by attribute, coder and method, and their means over attributes."""

    scores: tuple[AttributeScore, ...]
    hits: Mapping[tuple[str, Method], list[Hits]] = dataclasses.field(repr=False)
    """By coder and method, the single test pairs of each attribute."""

    def measures(self) -> list[Measure]:
        """Cause, isolation and disentangle: means over attributes, by method, with the coders beside each other."""
        whole = {name: hits for (name, method), hits in self.hits.items() if method == "all"}
        result = []
        for method in dict.fromkeys(method for _, method in self.hits if method != "all"):
            columns = {name: hits for (name, m), hits in self.hits.items() if m == method} | whole
            for figure, (of, meaning) in _FIGURES.items():
                estimates = {name: of(hits) for name, hits in columns.items()}
                result.append(Measure(f"{figure} ({method})", meaning, "higher", estimates))
        return result


@dataclasses.dataclass(frozen=True)
class Hits:
    """Which test pairs of one attribute were answered rightly: for cause, and for each other attribute."""

    cause: np.ndarray
    isolation: tuple[np.ndarray, ...]


def ravel(
    model: Model,
    address: str,
    compared: Compared,
    prompts: Sequence[EntityPrompt],
    config: RavelConfig = SAEBENCH,
) -> RavelResult:
    """Measure how well latents at the last token of an entity disentangle its attributes.

    Beside the coders of `compared`, two more are measured: a random rotation of the values, and the whole vector.

    Args:
      model: any causal model that returns logits [seq, pos, vocab].
      address: what the dictionary reads, and writes.
      compared: the dictionary and its baselines, from `benchmarks.baselines.compare`.
      prompts: prompts that the model answers rightly (`known_prompts`).
      config: the settings.

    Raises:
      UserError: the prompts ask for fewer than two attributes, or too few values differ; or the dictionary does not
        write the value that it reads.
    """
    asked = attributes_of(prompts)
    coders = {name: [as_sparse_coder(one) for one in chosen] for name, chosen in compared.columns()}
    if not all(one.is_autoencoder() for chosen in coders.values() for one in chosen):
        raise UserError("RAVEL exchanges latents of a value and writes it back: give an SAE, not a transcoder")
    d = _width(compared)
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(config.seed), (d, d)))[0]
    coders |= {ROTATION: [Basis(rotation, jnp.zeros(d))], WHOLE: [Identity()]}
    scores: list[AttributeScore] = []
    hits: dict[tuple[str, Method], list[Hits]] = {}
    for attribute in asked:
        train, test = (_data(model, address, prompts, attribute, split, config) for split in ("train", "test"))
        for name, chosen in coders.items():
            for method in ("all",) if name == WHOLE else config.methods:
                found, latents = [], []
                for number, coder in enumerate(chosen):
                    mask = _mask(model, address, coder, train, method, config, number)
                    right = evaluate_mask(model, address, coder, jnp.asarray(mask), test, config.mask)
                    found.append(_hits(right, test[0]))
                    latents.append(int(mask.sum()))
                pooled = Hits(
                    np.concatenate([one.cause for one in found]),
                    tuple(np.concatenate(parts) for parts in zip(*(one.isolation for one in found))),
                )
                hits.setdefault((name, method), []).append(pooled)
                figures = [of([pooled]) for of, _ in _FIGURES.values()]
                scores.append(AttributeScore(attribute, name, method, float(np.mean(latents)), *figures))
    return RavelResult(tuple(scores), hits)


def _width(compared: Compared) -> int:
    directions = as_sparse_coder(compared.raw).directions()
    assert directions is not None
    return directions.shape[1]


Data = tuple[Pairs, jax.Array, jax.Array]


def _data(
    model: Model, address: str, prompts: Sequence[EntityPrompt], attribute: str, split: str, config: RavelConfig
) -> Data:
    """Pairs of an attribute with the values of their bases and sources."""
    share = config.train if split == "train" else 1 - config.train
    n = max(round(config.pairs * share), 2)
    chosen: Literal["train", "test"] = "train" if split == "train" else "test"
    pairs = make_pairs(prompts, attribute, n, split=chosen, train=config.train, seed=config.seed)
    return pairs, *entity_values(model, address, pairs, config.mask.batch)


def _mask(
    model: Model, address: str, coder: SparseCoder, train: Data, method: Method, config: RavelConfig, number: int
) -> np.ndarray:
    features = jax.eval_shape(coder.encode, train[1]).shape[1]
    if method == "all":
        return np.ones(features, bool)
    if method == "mask":
        return train_mask(model, address, coder, train, config.mask, config.seed + number)
    pairs, base, source = train
    latents = np.asarray(coder.encode(jnp.concatenate([base, source])))
    classes = np.concatenate([np.asarray(pairs.base_value), np.asarray(pairs.source_value)])
    order = np.argsort(-separation(latents[classes >= 0], classes[classes >= 0]), kind="stable")
    best, chosen = -1.0, np.zeros(features, bool)
    for k in sorted({min(k, features) for k in config.ks}):
        mask = np.isin(np.arange(features), order[:k])
        found = _hits(evaluate_mask(model, address, coder, jnp.asarray(mask), train, config.mask), pairs)
        if (value := _disentangle([found]).value) > best:
            best, chosen = value, mask
    return chosen


def _hits(right: np.ndarray, pairs: Pairs) -> Hits:
    cause, group = np.asarray(pairs.cause), np.asarray(pairs.group)
    return Hits(right[cause], tuple(right[~cause & (group == one)] for one in np.unique(group[~cause])))


def _mean(weighted: Sequence[tuple[float, np.ndarray]], attributes: int) -> Estimate:
    """The weighted mean of rates, with a bootstrap interval: a rate of n pairs is drawn from a binomial of n."""
    rng = np.random.default_rng(0)
    rates = [(weight, float(np.mean(hits)), len(hits)) for weight, hits in weighted]
    draws = sum(weight * rng.binomial(n, rate, REPLICATES) / n for weight, rate, n in rates)
    low, high = np.quantile(draws, [0.025, 0.975])
    value = sum(weight * rate for weight, rate, _ in rates)
    over = f"{sum(n for *_, n in rates)} test pairs of {attributes} attribute{'s' * (attributes > 1)}"
    return Estimate(float(value), float(low), float(high), over)


def _cause(hits: Sequence[Hits]) -> Estimate:
    return _mean([(1 / len(hits), one.cause) for one in hits], len(hits))


def _isolation(hits: Sequence[Hits]) -> Estimate:
    return _mean([(1 / len(hits) / len(one.isolation), part) for one in hits for part in one.isolation], len(hits))


def _disentangle(hits: Sequence[Hits]) -> Estimate:
    cause = [(0.5 / len(hits), one.cause) for one in hits]
    isolation = [(0.5 / len(hits) / len(one.isolation), part) for one in hits for part in one.isolation]
    return _mean(cause + isolation, len(hits))


_FIGURES = {
    "cause": (_cause, "fraction of answers that become those of the other entity"),
    "isolation": (_isolation, "fraction of answers about other attributes that stay"),
    "disentangle": (_disentangle, "(cause + isolation) / 2; 0.5 without any disentangling"),
}
