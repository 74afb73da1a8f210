"""Roll-backs: a run that met a NaN returns to its last checkpoint, and goes on in another way.

    fit(step, state, batch_at, steps=1000, run=SaveTo("runs/sae", every=100), log=Log(on_nan=OnNan("skip")))

A roll-back is one record: the step of the NaN, the checkpoint, and what is different from there on. The number of the
batch and the factor of the learning rate are functions of the step and of these records. `rollbacks.json` has them, and
every later checkpoint has those that led to it. So a run that is killed and started again still ends with the same
bits: either the record is on the disk, or the steps are repeated and meet the same NaN.

`metrics.jsonl` is cut back to the checkpoint, like at a resume. It describes the steps that led to the result. The last
records that were cut off stay in `rollbacks.json`, under "discarded".
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.core.processes import from_first_process
from jax_interp.training.nonfinite import NonFinite

FILE = "rollbacks.json"
DISCARDED = 100
"""How many discarded records of the log one roll-back keeps."""
Policy = Literal["stop", "skip", "lower-rate"]


class RollBackWarning(UserWarning):
    """A run met a NaN and returned to its last checkpoint."""


@dataclasses.dataclass(frozen=True)
class OnNan:
    """What a run does when a metric, or the state that should be saved, is NaN or infinite."""

    do: Policy = "stop"
    """What follows. "stop": raise NonFinite. "skip": return to the last checkpoint, and leave out the batches from
    there to the one of the NaN. "lower-rate": return to the last checkpoint, and multiply the learning rate by
    `factor`, if the trainer supports it."""
    times: int = 3
    """How many roll-backs one run may have. The next NaN stops it."""
    factor: float = 0.5
    """The factor of "lower-rate", between 0 and 1."""

    def __post_init__(self) -> None:
        if self.do not in ("stop", "skip", "lower-rate"):
            raise UserError(f"OnNan({self.do!r}): give 'stop', 'skip' or 'lower-rate'")
        if self.times < 1:
            raise UserError(f"OnNan(times={self.times}): give at least 1, or 'stop' for no roll-back")
        if not 0 < self.factor < 1:
            raise UserError(f"OnNan(factor={self.factor}): give a number between 0 and 1")


STOP = OnNan()


@dataclasses.dataclass(frozen=True)
class RollBack:
    """One roll-back.

    step: the step whose metrics or state were not finite.
    quantity, value: what was not finite.
    to: the step of the checkpoint. What follows holds for the steps after it.
    skipped: how many batches are left out after step `to`.
    rate_factor: the factor of the learning rate after step `to`.
    """

    step: int
    quantity: str
    value: str
    to: int
    skipped: int = 0
    rate_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class History:
    """The roll-backs of a run, in their order. The same run has the same history in all of its processes."""

    records: tuple[RollBack, ...] = ()

    def batch(self, k: int) -> int:
        """The number of the batch of step k. Steps count from 1, and batches from 0."""
        return k - 1 + sum(one.skipped for one in self.records if one.to < k)

    def rate_scale(self, k: int) -> float:
        """The factor of the learning rate in step k."""
        scale = 1.0
        for one in self.records:
            scale *= one.rate_factor if one.to < k else 1.0
        return scale

    def until(self, step: int) -> History:
        """The roll-backs that led to the state after `step`."""
        return History(tuple(one for one in self.records if one.to < step))

    def after(self, bad: NonFinite, to: int, policy: OnNan) -> History:
        """The history with one more roll-back."""
        skipped = self.batch(bad.step) + 1 - self.batch(to + 1) if policy.do == "skip" else 0
        factor = policy.factor if policy.do == "lower-rate" else 1.0
        return History((*self.records, RollBack(bad.step, bad.quantity, bad.value, to, skipped, factor)))

    def describe_last(self, policy: OnNan) -> str:
        """The last roll-back as a sentence."""
        one, number = self.records[-1], len(self.records)
        if one.skipped:
            first = History(self.records[:-1]).batch(one.to + 1)
            how = f"batches {first} to {first + one.skipped - 1} are skipped"
        else:
            how = f"the learning rate is multiplied by {self.rate_scale(one.to + 1):g}"
        return (
            f"step {one.step}: {one.quantity} is {one.value}; back to step {one.to}, {how} "
            f"(roll-back {number} of at most {policy.times})"
        )

    def to_json(self) -> list[dict[str, Any]]:
        """The records as JSON values."""
        return [dataclasses.asdict(one) for one in self.records]

    @classmethod
    def from_json(cls, values: Sequence[Mapping[str, Any]], where: str) -> History:
        """The history from JSON values. Entries that are not of a record ("discarded") are left out.

        Raises:
          UserError: the values are not those of a history.
        """
        names = [field.name for field in dataclasses.fields(RollBack)]
        try:
            return cls(tuple(RollBack(**{name: one[name] for name in names}) for one in values))
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{where} does not describe roll-backs: {error}") from error


def read_history(directory: Path, step: int, recorded: Mapping[str, Any]) -> History:
    """The history of a run that resumes from a checkpoint. Every process calls this, and the first one reads.

    Args:
      directory: the run directory.
      step: the step of the checkpoint.
      recorded: what the checkpoint records (`checkpoint.about`).

    Raises:
      UserError: `rollbacks.json` is damaged, or it is not the file that the checkpoint records.
    """
    values = from_first_process(lambda: _read(directory, step, recorded).to_json())
    return History.from_json(values, str(directory / FILE))


def _read(directory: Path, step: int, recorded: Mapping[str, Any]) -> History:
    path = directory / FILE
    found = History()
    if path.exists():
        found = History.from_json(read_json(path, nonfinite=True).get("rollbacks", []), str(path))
    led = History.from_json(recorded.get("rollbacks", []), f"the checkpoint of step {step} in {directory}")
    if found.until(step) != led:
        raise UserError(
            f"{path} is not the file that belongs to the checkpoint of step {step} ({len(led.records)} roll-backs "
            f"before it, {len(found.until(step).records)} in the file). Bring the file back to resume the run"
        )
    return found


def write_history(directory: Path, history: History, discarded: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write `rollbacks.json`: the history, and the discarded records of the log beside the last roll-back."""
    path = directory / FILE
    before = read_json(path, nonfinite=True).get("rollbacks", []) if path.exists() else []
    values = [{**old, **new} for old, new in zip(before, history.to_json())] + history.to_json()[len(before) :]
    if discarded:
        values[-1] = {**values[-1], "discarded": list(discarded)[-DISCARDED:]}
    write_json(path, {"rollbacks": values}, nonfinite=True)


def takes_rate_scale(step: Callable[..., Any]) -> bool:
    """Whether a step has a parameter `rate_scale`, which multiplies its learning rate."""
    return "rate_scale" in inspect.signature(step).parameters


def check_policy(policy: OnNan, step: Callable[..., Any], title: str, saved: bool) -> None:
    """Raises UserError if a run cannot follow the policy."""
    if policy.do != "stop" and not saved:
        raise UserError(f"on_nan={policy.do!r} returns to a checkpoint: give a run directory")
    if policy.do == "lower-rate" and not takes_rate_scale(step):
        raise UserError(
            f"{title}: this trainer cannot lower its learning rate while it runs. Choose 'skip' or 'stop' as on_nan "
            "(--on-nan), or branch a new run with a lower learning rate (--from)"
        )
