"""The options of all commands that train: where the run is saved, where it starts, where its log goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jax_interp.cli.mesh_option import MeshOption
from jax_interp.core.errors import UserError
from jax_interp.recipes.configs import FoundConfig


@dataclass(frozen=True, kw_only=True)
class RunOptions(MeshOption):
    """Options that the commands have in common."""

    run_dir: Path | None = None
    """The run directory. Default: runs/<config name>, or the run directory that was given as CONFIG."""
    parent: Annotated[str | None, tyro.conf.arg(name="from", metavar="RUN[@STEP]")] = None
    """Start a new run from the last checkpoint of another run, or from that of a step: to train longer or with other
    settings. Needs --run-dir. Without CONFIG, the config of that run is used."""
    log_to: Annotated[tuple[Literal["tensorboard", "wandb"], ...], tyro.conf.arg(metavar="tensorboard|wandb")] = ()
    """Programs that get a copy of the log."""
    on_nan: Literal["stop", "skip", "lower-rate"] = "stop"
    """When a metric or the state is NaN: stop; or return to the last checkpoint, and skip the batches up to the NaN, or
    lower the learning rate."""
    on_nan_times: int = 3
    """How many times a run may return to a checkpoint. The next NaN stops it."""
    on_nan_factor: float = 0.5
    """The factor of --on-nan lower-rate."""
    grace: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """How long the cluster waits between SIGTERM and the kill. The run warns if a save takes longer. Default:
    JAX_INTERP_GRACE_SECONDS, if it is set."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="A..B")] = None
    """Write a profile of steps A to B into the run directory. For a run that goes on: echo 5 > RUN/profile-now."""
    quiet: bool = False
    """Do not show progress."""

    def of_recipe(self) -> dict[str, Any]:
        """The keyword arguments that all recipes take. Raises UserError if there is no such mesh."""
        from jax_interp.training import Log, OnNan
        from jax_interp.training.profiling import parse_range

        on_nan = OnNan(self.on_nan, self.on_nan_times, self.on_nan_factor)
        profile = None if self.profile is None else parse_range(self.profile)
        log = Log(to=self.log_to, quiet=self.quiet, on_nan=on_nan, grace=self.grace, profile=profile)
        return {"mesh": self.devices(), "quiet": self.quiet, "parent": self.parent, "log": log}

    def directory(self, found: FoundConfig[Any]) -> Path:
        """The run directory. Raises UserError if a run that starts from another one has none of its own."""
        directory = self.run_dir or found.run_dir
        if directory is None and self.parent is not None:
            raise UserError("--from starts a new run: give its directory with --run-dir")
        return directory or Path("runs") / found.name
