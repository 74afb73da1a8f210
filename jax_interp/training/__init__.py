"""The step loop, state, checkpoints, meshes and sharding rules, logging. Knows no method."""

from jax_interp.training.loop import Interrupted, NonFinite, fit
from jax_interp.training.runs import Run, open_run

__all__ = ["Interrupted", "NonFinite", "Run", "fit", "open_run"]
