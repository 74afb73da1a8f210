"""A defended model: a model that answers, and an alarm that reads the same forward pass.

Deployed, it answers unless the alarm is on; then a refusal replaces the response. The alarm is on if the score of any
token of the response is above the threshold (the harmfulness probes of Zou et al. 2024, arXiv:2406.04313).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.core.objectives import kl_divergence, log_probabilities
from jax_interp.core.processes import to_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.monitors.defences.examples import Texts, texts_of, wide
from jax_interp.probes.probe import Probe
from jax_interp.surgery import Model, edit, read
from jax_interp.surgery.taps import Edit


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Alarm:
    """A probe on the tokens of a response.

    Args:
      probe: a probe that reads one vector, or the vectors of a sequence.
      threshold: the alarm is on above it.
      site: the address of the value that the probe reads.
    """

    probe: Probe
    threshold: Float[Array, ""]
    site: str = dataclasses.field(metadata={"static": True})

    def excess(
        self, x: Float[Array, "example pos d"], response: Bool[Array, "example pos"]
    ) -> Float[Array, "example n"]:
        """How far scores are above the threshold: of each token, -inf outside the response; or of the sequence."""
        if self.probe.reads == "sequences":
            return (self.probe.score(wide(x), response) - self.threshold)[:, None]
        return jnp.where(response, self.probe.score(wide(x)) - self.threshold, -jnp.inf)

    def score(self, x: Float[Array, "example pos d"], response: Bool[Array, "example pos"]) -> Float[Array, " example"]:
        """The score of each response: the largest score of its tokens."""
        return jnp.max(self.excess(x, response), axis=1) + self.threshold


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Defended:
    """A model and its alarm.

    Args:
      model: the model that answers.
      alarm: the alarm. None: every answer goes out.
    """

    model: Model
    alarm: Alarm | None = None

    def __call__(self, texts: Texts, edits: Sequence[Edit] = ()) -> tuple[Array, Float[Array, "example n"] | None]:
        """The logits, and how far the scores of the alarm are above its threshold.

        Args:
          texts: requests with responses.
          edits: edits of the model, such as the perturbations of an attack. The alarm sees the edited values.
        """
        model = edit(self.model, *edits) if edits else self.model
        if self.alarm is None:
            return model(texts.tokens, mask=texts.mask), None
        logits, values = read(model, self.alarm.site)(texts.tokens, mask=texts.mask)
        return logits, self.alarm.excess(values[self.alarm.site], texts.response)

    def with_threshold(self, threshold: float) -> Defended:
        """The same with another threshold of the alarm. Without an alarm it is unchanged."""
        if self.alarm is None:
            return self
        return dataclasses.replace(
            self, alarm=dataclasses.replace(self.alarm, threshold=jnp.asarray(threshold, jnp.float32))
        )


def answers_in_full(logits: Float[Array, "example pos vocab"], texts: Texts) -> Bool[Array, " example"]:
    """Whether greedy decoding gives exactly the response of the text.

    The logits are those of the text itself. If each token of the response is the most likely one after the tokens
    before it, then greedy decoding writes the same response, and otherwise it does not.
    """
    right = jnp.argmax(logits[:, :-1], axis=-1).astype(jnp.int32) == texts.tokens[:, 1:].astype(jnp.int32)
    return jnp.all(right | ~texts.predicts(), axis=1) & jnp.all(jnp.isfinite(logits), axis=(1, 2))


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """What a defended model does with each example.

    Args:
      answered: whether the model gives the whole response.
      score: the score of the alarm. -inf without an alarm, so that it is never on.
      kl: KL(reference ‖ model) of the next token, the mean over the tokens of the response, in nats. None: there was no
        reference.
    """

    answered: Bool[np.ndarray, " example"]
    score: Float[np.ndarray, " example"]
    kl: Float[np.ndarray, " example"] | None = None

    def goes_out(self, threshold: float) -> Bool[np.ndarray, " example"]:
        """Whether the response goes out: the model gives it, and the alarm is not on. A NaN score is an alarm."""
        return self.answered & (self.score <= threshold)


def outcomes(defended: Defended, data: LabelledTokens, *, reference: Model | None = None, batch: int = 128) -> Outcomes:
    """Run a defended model on examples.

    Args:
      defended: the model with its alarm.
      data: requests with the responses that the untouched model gives.
      reference: the untouched model, to measure how far the model has moved.
      batch: the number of examples in one forward pass.
    """
    texts, found = texts_of(data), []
    for rows in batched(len(data), batch):
        found.append(to_host(_outcomes(defended, texts.take(rows), reference)))
    answered, score, kl = (None if parts[0] is None else np.concatenate(parts)[: len(data)] for parts in zip(*found))
    return Outcomes(answered, score, kl)  # type: ignore[arg-type]


def batched(n: int, batch: int) -> list[np.ndarray]:
    """The numbers of the examples in batches of one size. The last one is filled up with copies of the last example."""
    batch = min(n, batch)
    return [np.minimum(np.arange(start, start + batch), n - 1) for start in range(0, n, batch)]


@jax.jit
def _outcomes(defended: Defended, texts: Texts, reference: Model | None) -> tuple[Array, Array, Array | None]:
    logits, excess = defended(texts)
    score = jnp.full(len(texts.harmful), -jnp.inf)
    if excess is not None and defended.alarm is not None:
        score = jnp.max(excess, axis=1) + defended.alarm.threshold
    kl = None if reference is None else mean_kl(reference, logits, texts)
    return answers_in_full(logits, texts), score, kl


def mean_kl(reference: Model, logits: Float[Array, "example pos vocab"], texts: Texts) -> Float[Array, " example"]:
    """KL(reference ‖ model), the mean over the tokens of each response, in nats."""
    of_reference = log_probabilities(reference(texts.tokens, mask=texts.mask))
    each = kl_divergence(of_reference, log_probabilities(logits))
    total = jnp.sum(jnp.where(texts.response, each, 0.0), axis=1)
    return total / jnp.sum(texts.response, axis=1).astype(jnp.float32)
