"""Attribution-based parameter decomposition (APD).

Braun, Bushnaq, Heimersheim, Mendel & Sharkey 2025, arXiv 2501.14926.

A component spans all matrices and has a rank of up to m in each. It is stored as m neighbouring subcomponents of every
matrix, so the model is that of `decompose` with C · m of them, and a component's mask is repeated m times.

config.py         the config of a run
attributions.py   how much of an output each component accounts for, and which components are kept
losses.py         parameter match, reconstruction, simplicity (Schatten norms)
train.py          one jitted step, and the trainers
trained.py        a trained decomposition with its threshold; its file
spectrum.py       components as matrices, and their singular values
evaluate.py       all figures of one run; components as the parts of the linearity suite
"""

from jax_interp.decomposition.apd.attributions import attributions, batch_top_k, component_masks
from jax_interp.decomposition.apd.config import APDConfig
from jax_interp.decomposition.apd.losses import schatten
from jax_interp.decomposition.apd.train import apd_instances, train_apd
from jax_interp.decomposition.apd.trained import TrainedAPD, load_apd, save_apd, with_threshold

__all__ = [
    "APDConfig", "TrainedAPD", "apd_instances", "attributions", "batch_top_k", "component_masks", "load_apd",
    "save_apd", "schatten", "train_apd", "with_threshold",
]  # fmt: skip
