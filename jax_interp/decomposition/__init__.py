"""Parameter decomposition: split a network's matrices into the mechanisms that the network uses.

    parts = decompose(model, "blocks.*.mlp", C=512, key=key)
    logits, acts = read(parts, "blocks.*.mlp.up.components")(tokens)

components.py        `decompose`: matrices as sums of rank-one components, whose inner activations are named values
matrices.py          the matrices that a pattern selects
probe.py             a check that they are linear maps
masks.py             masks of components, as edits
importance/          causal importance functions; sigmoids.py
losses/              loss terms and adversaries
config.py, train.py  SPD and its successors: the config and one jitted step; presets.py has published runs
apd/                 attribution-based parameter decomposition, the first method of the family
training_run.py      what the trainers share
sharding.py, storage.py            V and U on a mesh; a trained decomposition on disk
metrics/, evaluate.py              single metrics of a decomposition; all metrics at once
linearity/           tests of the assumption that weights are a sum of parts
capacity.py          how many components are alive as C grows
top_components.py    the most important components on given inputs
clustering.py        groups of components that form one mechanism
attributions.py, interactions.py   which components activate later ones; an attention logit by pairs of components
prune.py, edit_weights.py          the components that one prompt needs; edits of single components in the weights

Loss terms, adversaries, importance functions, sigmoids and methods are registered where they are defined. To add one,
write one file. Configs accept it as soon as this file is imported.
"""

from jax_interp.decomposition.apd import APDConfig, train_apd
from jax_interp.decomposition.components import Components, Decomposed, decompose
from jax_interp.decomposition.config import DecompositionConfig, Schedule, WarmUp
from jax_interp.decomposition.linearity import WeightParts, decomposition_linearity, weight_linearity
from jax_interp.decomposition.masks import Mask, edits, masked_output
from jax_interp.decomposition.train import Trained, train_decomposition, train_instances

__all__ = [
    "APDConfig", "Components", "Decomposed", "DecompositionConfig", "Mask", "Schedule", "Trained", "WarmUp",
    "WeightParts", "decompose", "decomposition_linearity", "edits", "masked_output", "train_apd",
    "train_decomposition", "train_instances", "weight_linearity",
]  # fmt: skip
