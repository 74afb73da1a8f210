"""Attribution-based parameter decomposition (Braun, Bushnaq, Heimersheim, Mendel & Sharkey 2025, arXiv 2501.14926).

A component spans all matrices and has rank up to m in each: its parts are m neighbouring subcomponents of every
matrix, so the model is that of `decompose` with C · m of them, and a component's mask is repeated m times.

attributions.py   how much of an output each component accounts for; which are kept
simplicity.py     Schatten norms of the components
train.py          one jitted step
trained.py        what is left of a run: the model, and from which attribution on a component is kept; storage.py
spectrum.py       components as matrices, their singular values
ablatable.py      components as the parts that the linearity suite takes away
evaluate.py       all figures of one run
"""

from jax_interp.decomposition.apd.attributions import attributions, batch_top_k, component_masks
from jax_interp.decomposition.apd.simplicity import schatten
from jax_interp.decomposition.apd.storage import load_apd, save_apd
from jax_interp.decomposition.apd.train import APDConfig, apd_instances, train_apd
from jax_interp.decomposition.apd.trained import TrainedAPD, with_threshold

__all__ = [
    "APDConfig", "TrainedAPD", "apd_instances", "attributions", "batch_top_k", "component_masks", "load_apd",
    "save_apd", "schatten", "train_apd", "with_threshold",
]  # fmt: skip
