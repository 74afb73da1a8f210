"""What `collect_features` and `collect_units` collect, and the names that a page shows."""

from __future__ import annotations

import dataclasses

from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class PageOptions:
    """What is collected about each unit.

    Args:
      units: the indices of the units. None: all.
      top: the number of examples with the highest scores, and with the lowest ones where scores are negative.
      sample: the size of the uniform sample of positions at which a unit is on. From it come the uniform examples, the
        quantiles, and co-firing of many units.
      uniform: the number of uniform examples that are kept.
      quantiles: the number of groups into which the sample is divided by score. 0: no such groups.
      per_quantile: the number of examples in each group.
      before: the number of tokens before the position of an example.
      after: the number of tokens after it.
      threshold: a unit is on where |score| is above it.
      promoted: the number of promoted and of suppressed tokens.
      logit_bins: the number of bins of the logit histogram.
      neighbours: the number of units with similar decoder directions.
      co_firing: the number of units that are on at the same positions.
      exact_co_firing: up to so many units, co-firing is counted. It is estimated from the samples for more units.
      loss_examples: the number of top and of uniform examples on which the unit is ablated. Each costs two runs of the
        model on its sequence.
      writes: the address that a transcoder writes, where its features are ablated. None: the dictionary reconstructs
        the value that it reads.
      token_examples: the number of top examples whose tokens are ablated, one at a time. Each costs `before` + 2 runs
        of the model on its sequence.
      seed: another seed draws another sample.
      piece: the number of units whose statistics are computed at once.
    """

    units: tuple[int, ...] | None = None
    top: int = 20
    sample: int = 64
    uniform: int = 10
    quantiles: int = 5
    per_quantile: int = 5
    before: int = 16
    after: int = 8
    threshold: float = 0.0
    promoted: int = 10
    logit_bins: int = 40
    neighbours: int = 8
    co_firing: int = 8
    exact_co_firing: int = 1024
    loss_examples: int = 0
    writes: str | None = None
    token_examples: int = 0
    seed: int = 0
    piece: int = 512

    def __post_init__(self) -> None:
        least = {"top": 1, "sample": 1, "piece": 1, "logit_bins": 1}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("units", "threshold", "seed", "writes") and value < least.get(field.name, 0):
                raise UserError(f"{field.name}={value}: give a number from {least.get(field.name, 0)} on")
        if not 0 <= self.threshold < float("inf"):
            raise UserError(
                f"threshold={self.threshold}: give a number from 0 on; a unit is on where |score| is above it"
            )
        if self.uniform > self.sample or self.loss_examples > max(self.top, self.uniform):
            raise UserError(
                f"uniform={self.uniform} of sample={self.sample}, loss_examples={self.loss_examples}: uniform examples "
                "are a part of the sample, and effects are measured on examples that are kept"
            )
        if self.token_examples > self.top:
            raise UserError(f"token_examples={self.token_examples}, but only {self.top} top examples are kept")


DEFAULT_OPTIONS = PageOptions()


@dataclasses.dataclass(frozen=True)
class Names:
    """Names for the reader of a page. They change no number.

    Args:
      unit: what a unit is, in one word: "feature", "neuron".
      title: the title of the page.
      model: the name of the model.
      text: the name of the text.
    """

    unit: str = "feature"
    title: str = "Features"
    model: str = ""
    text: str = ""


FEATURES, UNITS = Names(), Names(unit="unit", title="Units")
