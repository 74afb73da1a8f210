"""What the environment of a cluster says about the processes of a run, found by JAX."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

from jax_interp.core.errors import UserError

_HOW = "Otherwise give all three: --coordinator HOST:PORT --processes N --process I"


@dataclass(frozen=True)
class Place:
    """A process among those of its run."""

    coordinator: str
    """HOST:PORT of process 0."""
    count: int
    """How many processes there are."""
    index: int
    """The number of this process, from 0."""
    local_devices: tuple[int, ...] | None = None
    """The devices of its machine that it uses. None: all of them."""


def place_in_cluster(seconds: float) -> Place:
    """The place of this process in a SLURM job, an Open MPI job, a Cloud TPU slice or a Kubernetes indexed job.

    Args:
      seconds: how long to wait for the name of process 0's machine.

    Raises:
      UserError: the environment is that of no cluster, or a value is missing.
    """
    try:
        from jax._src.clusters import ClusterEnv

        detect = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError) as error:
        raise UserError(f"this version of JAX does not tell the cluster: {error}. {_HOW}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the message below says it
        try:
            coordinator, count, index, devices = detect(None, None, None, None, None, int(seconds))
        except Exception as error:  # whatever the client of a cluster raises
            raise UserError(f"the cluster was found, but does not say all: {error}. {_HOW}") from error
    if coordinator is None or count is None or index is None:
        kubernetes = (
            " This is a Kubernetes pod without the Python package kubernetes, which JAX needs: pip install kubernetes."
            if "KUBERNETES_SERVICE_HOST" in os.environ
            else ""
        )
        raise UserError(
            "--processes auto found no cluster. It knows SLURM (a step of srun), Open MPI (mpirun), Cloud TPU and "
            f"Kubernetes indexed jobs.{kubernetes} {_HOW}"
        )
    return Place(coordinator, count, index, None if devices is None else tuple(devices))
