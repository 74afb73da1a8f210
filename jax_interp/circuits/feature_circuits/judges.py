"""Judges: which features of a classifier belong to what it should not use. They see the features, not the test.

A judge is a function of `Candidates` that returns True for each feature to ablate. In the paper a person reads the
examples of each feature; such decisions are a judge too: `lambda c: np.asarray([name in decided for name in c.names])`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.circuits.feature_circuits.attributed_texts import AttributedTexts
from jax_interp.circuits.feature_circuits.circuit import FeatureCircuit
from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The features with the largest effects on a classifier, as a judge sees them.

    Args:
      circuit: the features, without errors.
      examples: for each feature, the activations of its examples, the largest first.
      texts: the numbers of these texts among those of the classifier.
      positions: the positions in these texts.
      tokens: the tokens at these positions.
      mean_latents: a function from texts to the mean of each feature over the tokens of each text.
    """

    circuit: FeatureCircuit
    examples: Float[np.ndarray, "feature example"]
    texts: Int[np.ndarray, "feature example"]
    positions: Int[np.ndarray, "feature example"]
    tokens: Int[np.ndarray, "feature example"]
    mean_latents: Callable[[AttributedTexts], Float[np.ndarray, "text feature"]]

    @property
    def names(self) -> list[str]:
        """The name of each feature: its address, and its number."""
        return [self.circuit.name(i) for i in range(self.circuit.n_nodes)]


Judge = Callable[[Candidates], Bool[np.ndarray, " feature"]]


def judge_by_tokens(intended: Bool[np.ndarray, " vocab"], spurious: Bool[np.ndarray, " vocab"]) -> Judge:
    """Ablate a feature whose examples are more on tokens of the spurious attribute than on tokens of the intended one.

    Args:
      intended: for each token of the vocabulary, whether it is a word of the intended attribute.
      spurious: whether it is a word of the spurious attribute.
    """

    def judge(candidates: Candidates) -> Bool[np.ndarray, " feature"]:
        share = lambda words: (candidates.examples * np.asarray(words, float)[candidates.tokens]).sum(axis=1)
        return share(spurious) > share(intended)

    return judge


def judge_by_list(texts: AttributedTexts) -> Judge:
    """Ablate a feature that goes more with the spurious than with the intended attribute on a few labelled texts.

    Each feature's mean activation on a text is correlated with both attributes. The list must tell the attributes
    apart, so it holds knowledge that the training labels do not have; a person who reads examples has it too.

    Args:
      texts: a small list with texts of all four groups.

    Raises:
      UserError: a group has no text.
    """
    if min(texts.groups().values()) < 1:
        raise UserError(f"the list has the groups {texts.groups()} (intended, spurious): a judge needs all four")

    def judge(candidates: Candidates) -> Bool[np.ndarray, " feature"]:
        z = np.asarray(candidates.mean_latents(texts), np.float64)
        z = z - z.mean(axis=0)
        with_attribute = lambda y: np.abs((y - y.mean()) @ z) / max(float(np.std(y)), 1e-12)
        return with_attribute(texts.spurious.astype(float)) > with_attribute(texts.intended.astype(float))

    return judge
