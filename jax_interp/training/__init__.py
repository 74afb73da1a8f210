"""Training infrastructure for all methods: the step loop, checkpoints, run directories, meshes and sharding rules."""

from jax_interp.core.joined.join import join_processes
from jax_interp.training.interrupt import Interrupted
from jax_interp.training.loop import fit
from jax_interp.training.nonfinite import NonFinite
from jax_interp.training.options import QUIET, Log, RunTarget, SaveTo
from jax_interp.training.placement import Place, Placement, automatic, automatic_step, on_mesh, placed, split_rows
from jax_interp.training.provenance import ResumeWarning
from jax_interp.training.rollback import OnNan, RollBackWarning
from jax_interp.training.row_batches import RowBatches
from jax_interp.training.runs import Run, open_run
from jax_interp.training.storage_error import StorageError

__all__ = [
    "QUIET",
    "Interrupted",
    "Log",
    "NonFinite",
    "OnNan",
    "Place",
    "Placement",
    "ResumeWarning",
    "RollBackWarning",
    "RowBatches",
    "Run",
    "RunTarget",
    "SaveTo",
    "StorageError",
    "automatic",
    "automatic_step",
    "fit",
    "join_processes",
    "on_mesh",
    "open_run",
    "placed",
    "split_rows",
]
