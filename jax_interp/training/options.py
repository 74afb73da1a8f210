"""The options of `fit`: `SaveTo` is where and how often a run is saved, `Log` is what is measured, logged and shown."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.training.runs import Run, open_run


def _check_positive(owner: str, **counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            default = "the default" if owner == "Log" and name == "every" else "never"
            raise UserError(f"{owner}({name}={value}): give a positive number of steps, or None for {default}")


@dataclasses.dataclass(frozen=True)
class SaveTo:
    """Where a run is saved, and how often.

    Example:
        fit(step, state, batch_at, steps=1000, run=SaveTo("runs/sae", config, every=100))
    """

    run: Run | Path | str | None = None
    """The directory of checkpoints, `metrics.jsonl` and `timing.jsonl`, or an open run. None: nothing is saved."""
    config: Any = None
    """A frozen dataclass, stored with the run. A resume with another config is refused. An open run has its config
    already, and this one is ignored. A trainer stores its own config here."""
    every: int | None = None
    """Steps between checkpoints. There is always one after the last step and one after a signal. None: only these."""
    keep: int = 3
    """How many of the last checkpoints stay on the disk."""
    milestone_every: int | None = None
    """Checkpoints of steps that are a multiple of this one are never deleted."""

    def __post_init__(self) -> None:
        _check_positive("SaveTo", every=self.every)

    @classmethod
    def of(cls, run: RunTarget, config: Any = None) -> SaveTo:
        """`run` as a `SaveTo`.

        Args:
          run: a `SaveTo`, a directory, an open run, or None.
          config: replaces the config of `run`, unless it is None.
        """
        saving = run if isinstance(run, SaveTo) else SaveTo(run)
        return saving if config is None else dataclasses.replace(saving, config=config)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Run | None]:
        """The open run. A directory is opened here and closed after the block; an open run stays open."""
        if self.run is None or isinstance(self.run, Run):
            yield self.run
            return
        with open_run(self.run, self.config) as run:
            yield run


RunTarget = SaveTo | Run | Path | str | None
"""What `fit` and the trainers accept as `run`: a directory alone saves after the last step only."""


@dataclasses.dataclass(frozen=True)
class Log:
    """What a run measures, writes to its log, and shows while it goes on. A field that is None takes the trainer's
    default, which is given here for `fit` itself.

    Example:
        fit(step, state, batch_at, steps=1000, log=Log(every=100, evaluate=held_out_loss, evaluate_every=500))
    """

    every: int | None = None
    """Steps between two records of `metrics.jsonl`. The last step is always recorded. Default: 10."""
    evaluate: Callable[..., Mapping[str, Any]] | None = None
    """`(state, *frozen) -> metrics`, called every `evaluate_every` steps and after the last one. The log has its
    metrics as `eval.<name>`. Default: nothing is evaluated."""
    evaluate_every: int | None = None
    """Steps between two calls of `evaluate`. Default: only after the last step."""
    shown: Sequence[str] | None = None
    """Names of the metrics on the progress display; rates are added. Default: `("loss",)`."""
    per_step: Mapping[str, float] | None = None
    """Amounts that one step handles, for rates: `{"tokens": 4096}` gives "tokens/s" in `timing.jsonl` and on the
    display. Default: none."""
    title: str | None = None
    """What the progress display calls the run. Default: "train"."""
    may_be_nan: Sequence[str] | None = None
    """Prefixes of metric names that may be NaN: the log then has null. Any other NaN stops the run. Default: none."""
    on_record: Callable[[dict[str, Any]], None] | None = None
    """Called with every record that is written to `metrics.jsonl`."""
    quiet: bool = False
    """Show nothing on stderr."""

    def __post_init__(self) -> None:
        _check_positive("Log", every=self.every, evaluate_every=self.evaluate_every)

    def with_defaults(self, **defaults: Any) -> Log:
        """These options, where every field that is None has its value from `defaults`."""
        unset = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **unset)


QUIET = Log(quiet=True)
"""The default log, and nothing on stderr."""
