"""Concept detection: how well the directions that steer towards a concept find it in texts.

    detectors = {"difference of means": {"rivers": detector(vector)}, "SAE": {"rivers": detector(feature_steering)}}
    result = detect(model, detectors, {"rivers": texts}, train={"rivers": seen})
    print(result.table())

The score of a text is the highest score of its readable tokens, as in AxBench. A bag of words is a baseline: a detector
that is no better has shown nothing about the model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, estimate
from jax_interp.core.processes import on_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.baselines.text_alone import bag_of_words
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.measures.roc import auroc_interval
from jax_interp.probes.text_reader import TextReader, wide_values
from jax_interp.steering.features.feature_steering import FeatureSteering
from jax_interp.steering.vector import SteeringVector
from jax_interp.surgery import Dictionary, Model
from jax_interp.surgery.sparse_coder import as_sparse_coder
from jax_interp.surgery.taps import static
from jax_interp.training.placement import automatic

BAG_OF_WORDS = "bag of words"


class Detector(Protocol):
    """A pytree that scores tokens by the value at an address."""

    @property
    def address(self) -> str: ...

    def token_scores(self, x: Float[Array, "batch pos d"], /) -> Float[Array, "batch pos"]: ...


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """The inner product with a vector."""

    vector: Float[Array, " d"]
    address: str = static()

    def token_scores(self, x: Float[Array, "batch pos d"]) -> Float[Array, "batch pos"]:
        vector = jnp.asarray(self.vector).astype(x.dtype)
        return jnp.einsum("bpd,d->bp", x, vector, precision=jax.lax.Precision.HIGHEST)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Latent:
    """The activation of a latent of a dictionary."""

    dictionary: Dictionary
    feature: Int32[Array, ""]
    address: str = static()

    def token_scores(self, x: Float[Array, "batch pos d"]) -> Float[Array, "batch pos"]:
        return as_sparse_coder(self.dictionary).encode(x)[..., self.feature].astype(x.dtype)


def detector(steering: SteeringVector | FeatureSteering) -> Detector:
    """The detector that belongs to a steering: its direction, or its latent.

    Raises:
      UserError: it has several vectors or latents.
    """
    if isinstance(steering, SteeringVector):
        if len(steering.vectors) != 1:
            raise UserError(f"vectors at {', '.join(steering.vectors)}: choose one layer with `only`")
        ((address, vector),) = steering.vectors.items()
        return Projection(vector, address)
    if len(steering.features) != 1:
        raise UserError(f"{len(steering.features)} latents: a detector has one")
    return Latent(steering.dictionary, steering.features[0], steering.reads)


@dataclasses.dataclass(frozen=True)
class Detection:
    """AUROC of each method and concept.

    Args:
      by_method: by method and concept, the AUROC with its interval over texts.
    """

    by_method: Mapping[str, Mapping[str, Estimate]]

    def overall(self, method: str) -> Estimate:
        """The mean over concepts, with its interval over concepts. NaN ends for a single concept."""
        values = np.asarray([one.value for one in self.by_method[method].values()])
        if len(values) < 2:
            return Estimate(float(values[0]), float("nan"), float("nan"))
        return estimate(lambda weights: weights @ values, len(values))

    def table(self) -> str:
        """One line for each method: the mean over concepts, the worst and the best concept."""
        lines = [f"{'method':<24}{'AUROC':<24}{'worst concept':<34}best concept"]
        for method, found in self.by_method.items():
            by_value = sorted(found, key=lambda concept: found[concept].value)
            ends = [f"{found[name].value:.3f} {name}" for name in (by_value[0], by_value[-1])]
            lines.append(f"{method:<24}{self.overall(method)!s:<24}{ends[0]:<34}{ends[1]}")
        return "\n".join(lines)


def detect(
    model: Model,
    detectors: Mapping[str, Mapping[str, Detector]],
    data: Mapping[str, LabelledTokens],
    *,
    train: Mapping[str, Bool[np.ndarray, " example"]] | None = None,
    batch: int = 32,
) -> Detection:
    """The AUROC of each detector on the texts of its concept.

    Args:
      model: the model whose values are read.
      detectors: by method and concept.
      data: for each concept, texts of two classes, of which the second one has the concept.
      train: for each concept, the texts that the directions were found on. They are left out of every AUROC, and the
        bag of words is fitted on them. None: all texts count, and there is no bag of words.
      batch: the number of texts in one forward pass.

    Raises:
      UserError: a method lacks a concept, a text has no readable token, a score is NaN, or the texts that count have
        one class only.
    """
    if not detectors or not data:
        raise UserError("give at least one method and one concept")
    for method, given in detectors.items():
        if missing := [concept for concept in data if concept not in given]:
            raise UserError(f"the method {method!r} lacks the concepts {', '.join(missing)}")
    found: dict[str, dict[str, Estimate]] = {method: {} for method in detectors}
    for concept, texts in data.items():
        if len(texts.classes) != 2:
            raise UserError(f"{texts.name} has the classes {', '.join(texts.classes) or 'none'}: give two")
        scores = dict(zip(detectors, detection_scores(model, tuple(d[concept] for d in detectors.values()), texts,
                                                      batch=batch), strict=True))  # fmt: skip
        test = np.ones(len(texts), bool)
        if train is not None:
            test = ~np.asarray(train[concept], bool)
            scores[BAG_OF_WORDS] = bag_of_words(texts, ~test)[0]
            found.setdefault(BAG_OF_WORDS, {})
        groups = None if texts.groups is None else texts.groups[test]
        for method, values in scores.items():
            found[method][concept] = auroc_interval(values[test], texts.labels[test] == 1, groups)
    return Detection(found)


def detection_scores(
    model: Model, detectors: tuple[Detector, ...], data: LabelledTokens, *, batch: int = 32
) -> Float[np.ndarray, "detector example"]:
    """The highest score of the readable tokens of each text, for several detectors in one pass over the texts.

    Raises:
      UserError: a text has no readable token, or there is no such value.
    """
    if not data.readable.any(axis=1).all():
        raise UserError(f"{data.name}: example {int(np.argmin(data.readable.any(axis=1)))} has no readable token")
    addresses = tuple(dict.fromkeys(one.address for one in detectors))
    reader = TextReader.of(model, data, addresses, batch, None)
    found = np.empty((len(detectors), len(data)), np.float32)
    for some, scores in reader.batches(functools.partial(_highest, detectors, addresses), data.readable):
        found[:, some.rows] = on_host(scores)[:, : len(some.rows)]
    return found


@functools.partial(jax.jit, static_argnums=(1, 2))
@automatic
def _highest(
    detectors: tuple[Detector, ...],
    addresses: tuple[str, ...],
    names: tuple[str, ...],
    model: Model,
    tokens: Array,
    mask: Bool[Array, "text pos"] | None,
    read: Bool[Array, "text pos"],
) -> Float[Array, "detector text"]:
    values = dict(zip(addresses, wide_values(names, model, tokens, mask), strict=True))
    highest = lambda scores: jnp.max(jnp.where(read, scores.astype(jnp.float32), -jnp.inf), axis=1)
    return jnp.stack([highest(one.token_scores(values[one.address])) for one in detectors])
