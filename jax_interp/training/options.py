"""The options of `fit`: `SaveTo` (where and how often a run is saved) and `Log` (what is measured and displayed)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.training.log_writers import MakeWriter, check_writers
from jax_interp.training.rollback import STOP, OnNan
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
    """A frozen dataclass that is stored with the run. A resume with another config is refused. If `run` is an open run,
    this field is ignored, because an open run already has a config. Trainers store their own config here."""
    every: int | None = None
    """Steps between checkpoints. None: save only after the last step and after a signal, which happens in any case."""
    keep: int = 3
    """How many of the last checkpoints stay on the disk."""
    milestone_every: int | None = None
    """Checkpoints of steps that are a multiple of this number are never deleted."""
    parent: Path | str | None = None
    """A checkpoint of another run to start from: `RUN` or `RUN@STEP`, see parent.py. If `run` is an open run, this
    field is ignored."""

    def __post_init__(self) -> None:
        _check_positive("SaveTo", every=self.every)

    @classmethod
    def of(cls, run: RunTarget, config: Any = None) -> SaveTo:
        """`run` as a `SaveTo`.

        Args:
          run: a `SaveTo`, a directory, an open run, or None.
          config: if not None, it replaces the config of `run`.
        """
        saving = run if isinstance(run, SaveTo) else SaveTo(run)
        return saving if config is None else dataclasses.replace(saving, config=config)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Run | None]:
        """The open run. If `run` is a directory, it is opened here and closed after the block."""
        if self.run is None or isinstance(self.run, Run):
            yield self.run
            return
        with open_run(self.run, self.config, parent=self.parent) as run:
            yield run


RunTarget = SaveTo | Run | Path | str | None
"""The values that `fit` and the trainers accept as `run`. With a plain directory, only the last step is saved."""


@dataclasses.dataclass(frozen=True)
class Log:
    """What a run measures, logs and displays, and what it does about a NaN.

    A field that is None takes the default of the trainer. The defaults below are those of `fit`.

    Example:
        fit(step, state, batch_at, steps=1000, log=Log(every=100, evaluate=held_out_loss, evaluate_every=500))
    """

    every: int | None = None
    """Steps between two records of `metrics.jsonl`. The last step is always recorded. Default: 10."""
    evaluate: Callable[..., Mapping[str, Any]] | None = None
    """`(state, *frozen) -> metrics`, called every `evaluate_every` steps and after the last step. The log has these
    metrics under `eval.<name>`. Default: nothing is evaluated."""
    evaluate_every: int | None = None
    """Steps between two calls of `evaluate`. Default: only after the last step."""
    shown: Sequence[str] | None = None
    """Names of the metrics on the progress display. Rates are shown too. Default: `("loss",)`."""
    per_step: Mapping[str, float] | None = None
    """Amounts that one step processes. `{"tokens": 4096}` gives the rate "tokens/s" in `timing.jsonl` and on the
    display. A metric of the same name is the total; the log takes it from here, because an int32 would wrap at 2³¹.
    Default: none."""
    title: str | None = None
    """The title of the run on the progress display. Default: "train"."""
    may_be_nan: Sequence[str] | None = None
    """Prefixes of metric names that may be NaN. The log then has null. Any other NaN stops the run. Default: none."""
    on_record: Callable[[dict[str, Any]], None] | None = None
    """Called with every record that is written to `metrics.jsonl`."""
    to: Sequence[str | MakeWriter] = ()
    """Where records go besides `metrics.jsonl`: "tensorboard", "wandb", or a function that makes a `LogWriter`."""
    on_nan: OnNan = STOP
    """What happens when a metric or the state is NaN or infinite: stop, or return to the last checkpoint."""
    grace: float | None = None
    """Seconds from SIGTERM to the kill on this cluster. If a save takes longer, the run warns. None: the variable
    `JAX_INTERP_GRACE_SECONDS` of the environment, or not known."""
    profile: tuple[int, int] | None = None
    """The first and the last step of a profile in the run directory, see profiling.py. Steps count from 1."""
    quiet: bool = False
    """Show nothing on stderr."""

    def __post_init__(self) -> None:
        check_writers(self.to)
        _check_positive("Log", every=self.every, evaluate_every=self.evaluate_every)

    def with_defaults(self, **defaults: Any) -> Log:
        """A copy in which every field that is None takes its value from `defaults`."""
        unset = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **unset)


QUIET = Log(quiet=True)
"""The default log, and nothing on stderr."""
