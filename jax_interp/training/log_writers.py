"""Copies of the metrics log for other programs: TensorBoard and Weights & Biases.

    train_dictionary(config, model, batch_at, run="runs/sae", log=Log(to=("tensorboard",)))

`metrics.jsonl` stays the record of the run. A writer gets every record after it was written there. A resumed run
repeats steps, and with them records that a writer already has. A writer therefore starts from the records of
`metrics.jsonl`: TensorBoard's files are written anew, and W&B continues the same run after the last step that was sent.
"""

from __future__ import annotations

import importlib.util
import math
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json

if TYPE_CHECKING:
    from jax_interp.training.runs import Run

Record = Mapping[str, Any]


class LogWriter(Protocol):
    """Where records of a run go besides `metrics.jsonl`."""

    def write(self, record: Record) -> None:
        """Take one record, which has a "step"."""

    def close(self) -> None:
        """Called at the end of the run, also after an error."""


MakeWriter = Callable[["Run", Sequence[Record]], LogWriter]
"""`(run, records) -> writer`. `records` are those of the steps that are done already."""


class TensorBoard:
    """Event files in `tensorboard/` of the run directory: `tensorboard --logdir runs` shows them."""

    def __init__(self, run: Run, records: Sequence[Record]):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

        place = run.directory / "tensorboard"
        shutil.rmtree(place, ignore_errors=True)
        self._file = EventFileWriter(str(place))
        for record in records:
            self.write(record)

    def write(self, record: Record) -> None:
        import time

        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportMissingImports]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportMissingImports]

        values = [Summary.Value(tag=name, simple_value=value) for name, value in _numbers(record)]
        self._file.add_event(Event(step=record["step"], wall_time=time.time(), summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()


class WandB:
    """A run of Weights & Biases. `WANDB_MODE=offline` writes it to `wandb/` of the run directory only.

    `wandb.json` in the run directory has the id of the W&B run and the last step that was sent.
    """

    def __init__(self, run: Run, records: Sequence[Record]):
        import wandb  # pyright: ignore[reportMissingImports]

        self._about = run.directory / "wandb.json"
        if self._about.exists():
            sent = read_json(self._about)
        else:
            sent = {"id": secrets.token_hex(4), "step": 0}
        self._id, self._sent = str(sent["id"]), int(sent["step"])
        self._run = wandb.init(
            id=self._id,
            resume="allow",
            dir=str(run.directory),
            name=run.directory.name,
            config=run.record.get("config"),
        )
        for record in records:
            self.write(record)

    def write(self, record: Record) -> None:
        if record["step"] <= self._sent:
            return
        self._sent = record["step"]
        write_json(self._about, {"id": self._id, "step": self._sent})  # first, so that no step is sent twice
        self._run.log(dict(_numbers(record)), step=record["step"])

    def close(self) -> None:
        self._run.finish()


WRITERS: dict[str, MakeWriter] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_writers(asked: Sequence[str | MakeWriter]) -> None:
    """Raises UserError if a writer is unknown, or if its package is not installed."""
    for name in asked:
        if not isinstance(name, str):
            continue
        if name not in WRITERS:
            raise UserError(f"no log goes to {name!r}: it can go to {', '.join(WRITERS)}")
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # without an origin it is only a folder of this name
            raise UserError(f"logging to {name} needs the package {name!r}: pip install 'jax_interp[{name}]'")


def make_writers(asked: Sequence[str | MakeWriter], run: Run, records: Sequence[Record]) -> list[LogWriter]:
    """The writers of a run, open, with the records of the steps that are done."""
    return [(WRITERS[one] if isinstance(one, str) else one)(run, records) for one in asked]


def _numbers(record: Record) -> Iterator[tuple[str, float]]:
    """The finite numbers of a record. A program that draws curves has no use for lists, text and null."""
    for name, value in record.items():
        if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
            yield name, float(value)
