"""Attribution-based parameter decomposition (APD).

Braun, Bushnaq, Heimersheim, Mendel & Sharkey 2025, arXiv 2501.14926.

A component spans all matrices and has a rank of up to m in each. It is stored as m neighbouring subcomponents of every
matrix. The model is therefore the result of `decompose` with C · m subcomponents, and the mask of a component is
repeated m times.

config.py         the config of a run
attributions.py   how much each component contributes to the outputs, and which components are kept
losses.py         parameter match, reconstruction, simplicity (Schatten norms)
train.py          one jitted step, and the trainers
trained.py        a trained decomposition with its threshold, and its file format
spectrum.py       components as matrices, and their singular values
evaluate.py       all metrics of one run; the linearity tests with components as parts
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
