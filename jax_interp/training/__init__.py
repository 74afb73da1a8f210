"""Training infrastructure for all methods: the step loop, checkpoints, run directories, meshes and sharding rules."""

from jax_interp.training.interrupt import Interrupted
from jax_interp.training.loop import NonFinite, fit
from jax_interp.training.options import QUIET, Log, RunTarget, SaveTo
from jax_interp.training.runs import Run, open_run

__all__ = ["QUIET", "Interrupted", "Log", "NonFinite", "Run", "RunTarget", "SaveTo", "fit", "open_run"]
