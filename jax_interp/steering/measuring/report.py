"""`SteeringReport`: a whole measurement of one steering, and its file.

report = measure(model, questions, vector, neutral=texts, capabilities={"facts": facts}, prompts=prompts)
report.dose_response()                         a row for each strength: effect and side effects
report.save("measurement.json")
SteeringReport.load("measurement.json")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_interp.core import config_json
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.steering.measuring.capability import Capability, capability
from jax_interp.steering.measuring.coherence import CONTINUING, Coherence, Continuing, coherence
from jax_interp.steering.measuring.propensity import STRENGTHS, Propensities, propensities
from jax_interp.steering.measuring.side_effects import SideEffects, side_effects
from jax_interp.steering.measuring.steerability import Steerability, steerability
from jax_interp.steering.measuring.steered_rows import BATCHING, Batching
from jax_interp.steering.measuring.transfer import Transfer
from jax_interp.steering.questions import Questions
from jax_interp.steering.vector import Steering
from jax_interp.surgery import Model


@dataclasses.dataclass(frozen=True, eq=False)
class SteeringReport:
    """Everything that was measured of one steering. What was not measured is None or empty.

    Args:
      steering: the name of the steering in tables.
      placement: the tokens at which it acts on questions.
      propensity: the log probabilities of the answers of each question.
      steerability: the slopes of the questions.
      side_effects: the effects on neutral text.
      capabilities: the accuracy on other questions.
      coherence: steered continuations.
      transfer: vectors on other sets of questions.
    """

    steering: str
    placement: str
    propensity: Propensities
    steerability: Steerability
    side_effects: SideEffects | None = None
    capabilities: dict[str, Capability] = dataclasses.field(default_factory=dict)
    coherence: Coherence | None = None
    transfer: Transfer | None = None

    def dose_response(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """A table with a row for each strength: (the headings, the rows). Each figure has its interval; the standard
        deviation of the samples follows as "sd"."""
        headings = ["strength", "propensity", "p(matching)", "p(answers)"]
        own = self.steerability
        columns: list[Sequence[Any]] = [own.curve, own.p_matching, own.p_answers]
        if (effects := self.side_effects) is not None:
            headings += ["KL", "loss increase"]
            columns += [effects.kl, effects.loss_increase]
            for site, sizes in effects.sizes.items():
                headings.append(f"size at {site}")
                columns.append([size.mean for size in sizes])
        for name, of in self.capabilities.items():
            headings += [f"accuracy: {name}", f"change: {name}"]
            columns += [of.accuracy, of.change]
        if self.coherence is not None:
            headings += ["loss of continuations", "repetition"]
            columns += [self.coherence.loss, self.coherence.repetition]
        rows = [
            (f"{strength:g}", *(_cell(column[i]) for column in columns)) for i, strength in enumerate(own.strengths)
        ]
        return tuple(headings), rows

    def lines(self) -> list[str]:
        """The figures as lines of text."""
        headings, rows = self.dose_response()
        table = ["; ".join(f"{name} {cell}" for name, cell in zip(headings, row, strict=True)) for row in rows]
        return [f"{self.steering}, steered at: {self.placement}", *self.steerability.lines(), *table]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, in which NaN may occur."""
        names = ("steerability", "side_effects", "capabilities", "coherence", "transfer")
        rest = {name: config_json.to_json(getattr(self, name), nonfinite=True) for name in names}
        own = {"steering": self.steering, "placement": self.placement, "propensity": self.propensity.to_json()}
        return own | rest

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SteeringReport:
        """What `to_json` wrote.

        Raises:
          UserError: it is something else.
        """
        kinds = {
            "steering": str,
            "placement": str,
            "steerability": Steerability,
            "side_effects": SideEffects | None,
            "capabilities": dict[str, Capability],
            "coherence": Coherence | None,
            "transfer": Transfer | None,
        }
        if missing := [name for name in (*kinds, "propensity") if name not in values]:
            raise UserError(f"this is no report of a steering: it has no {missing[0]!r}")
        read: Any = {name: config_json.from_json(kind, values[name], name) for name, kind in kinds.items()}
        return cls(propensity=Propensities.from_json(values["propensity"]), **read)

    def save(self, path: Path | str) -> Path:
        """Write the report as JSON with a digest, atomically."""
        return write_json(path, self.to_json(), indent=None, nonfinite=True)

    @classmethod
    def load(cls, path: Path | str) -> SteeringReport:
        """Read a report.

        Raises:
          UserError: the file is missing, was changed, or is no report.
        """
        return cls.from_json(read_json(path, nonfinite=True))


def measure(
    model: Model,
    questions: Questions,
    steering: Steering,
    strengths: Sequence[float] = STRENGTHS,
    *,
    name: str = "vector",
    placement: str = "all",
    side: SideMeasures | None = None,
    batching: Batching = BATCHING,
) -> SteeringReport:
    """Measure a steering: its effect on questions, and its side effects.

    Args:
      model: the model. Continuations need a `Decoder`.
      questions: questions on which it was not found.
      steering: the steering.
      strengths: the strengths, at least two.
      name: its name in tables.
      placement: the tokens at which it acts on questions, a name in `PLACEMENTS`.
      side: on what side effects are measured. None: they are not.
      batching: how rows are put into batches.

    Raises:
      UserError: as in `propensities`, `side_effects` and `coherence`.
    """
    side = SideMeasures() if side is None else side
    found = propensities(model, questions, steering, strengths, placement=placement, batching=batching)
    texts, prompts = side.neutral, side.prompts
    of_other = {
        other: capability(model, asked, steering, strengths, placement=placement, batching=batching)
        for other, asked in side.capabilities.items()
    }
    return SteeringReport(
        name,
        placement,
        found,
        steerability(found),
        side_effects(model, texts, steering, strengths, batching=batching) if texts else None,
        of_other,
        coherence(model, prompts, steering, strengths, side.continuing, batching=batching) if prompts else None,
    )


@dataclasses.dataclass(frozen=True)
class SideMeasures:
    """On what the side effects of a steering are measured. What is empty is not measured.

    Args:
      neutral: the token ids of texts that have nothing to do with the behaviour.
      capabilities: questions whose matching answer is right, by name.
      prompts: the token ids of prompts to continue.
      continuing: how they are continued.
    """

    neutral: Sequence[Sequence[int]] = ()
    capabilities: Mapping[str, Questions] = dataclasses.field(default_factory=dict)
    prompts: Sequence[Sequence[int]] = ()
    continuing: Continuing = CONTINUING


def _cell(figure: Any) -> str:
    """A figure with its interval, and the standard deviation of its samples if it has one."""
    if hasattr(figure, "mean"):
        return f"{figure.mean} sd {figure.sd:.3f}"
    return str(figure)
