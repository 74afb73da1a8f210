"""Sweeps: one intervention after another, over layers, positions, heads and coefficients, as one compiled program."""

from jax_interp.circuits.sweeps.ablation import ablate
from jax_interp.circuits.sweeps.cells import Axis
from jax_interp.circuits.sweeps.dataset_means import DatasetMeans, dataset_means
from jax_interp.circuits.sweeps.effects import Effects
from jax_interp.circuits.sweeps.grids import EVERY, GRIDS, Grid
from jax_interp.circuits.sweeps.patching import patch, patch_every
from jax_interp.circuits.sweeps.steering import steer
from jax_interp.circuits.sweeps.sweep import Pieces, SweepInterrupted, sweep

__all__ = [
    "EVERY",
    "GRIDS",
    "Axis",
    "DatasetMeans",
    "Effects",
    "Grid",
    "Pieces",
    "SweepInterrupted",
    "ablate",
    "dataset_means",
    "patch",
    "patch_every",
    "steer",
    "sweep",
]
