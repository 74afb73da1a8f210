"""Parameter decomposition: a network's matrices taken apart into the mechanisms that it uses.

components.py        `decompose`: matrices as sums of rank-one parts, their inner activations named values
matrices.py          which matrices a pattern means
masks.py             masks of components, as edits
importance/          how needed each component is, from what its matrix reads; sigmoids.py
losses/              each loss a frozen dataclass; adversaries
config.py, train.py, presets.py    one jitted step, on `training.fit`; published runs
sharding.py, storage.py            where V and U live on a mesh; a trained decomposition on disk
apd/                 attribution-based decomposition, the first method of the family
metrics/, evaluate.py              against known answers, under masks, under adversaries; all figures of one run
linearity/           the assumption itself under test
capacity.py          how many components come alive as C grows
strongest.py                       which components matter
clustering.py        which components make one mechanism
attributions.py, interactions.py   which make a later one fire; an attention logit by pairs of them
prune.py, edit_weights.py          the few that one prompt needs; weights changed by one

parts = decompose(model, "blocks.*.mlp", C=512, key=key)
logits, acts = read(parts, "blocks.*.mlp.up.components")(tokens)
"""

from jax_interp.decomposition.components import Components, Decomposed, decompose
from jax_interp.decomposition.config import DecompositionConfig, Schedule, WarmUp
from jax_interp.decomposition.linearity import WeightParts, decomposition_linearity, weight_linearity
from jax_interp.decomposition.masks import Mask, edits, masked_output
from jax_interp.decomposition.train import Trained, train_decomposition, train_instances

__all__ = [
    "Components", "Decomposed", "DecompositionConfig", "Mask", "Schedule", "Trained", "WarmUp", "WeightParts",
    "decompose", "decomposition_linearity", "edits", "masked_output", "train_decomposition", "train_instances",
    "weight_linearity",
]  # fmt: skip
