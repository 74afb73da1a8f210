"""What a decomposition is worth.

identity.py     one-hot probes: importances a permutation of the identity, or a dense block
sparsity.py     how many components are important, how many are alive
masks.py        outputs under six kinds of masks: KL, cross-entropy and the share not recovered; hidden activations
adversary.py    the worst masks, and the curve over steps
truth.py        against known directions: MMCS, ML2R; agreement of two runs
"""

from jax_interp.decomposition.metrics.adversary import pgd_curve, pgd_error
from jax_interp.decomposition.metrics.identity import dense_error, identity_error, pattern_errors, probe
from jax_interp.decomposition.metrics.masks import MaskReport, hidden_report, mask_report
from jax_interp.decomposition.metrics.sparsity import alive, l0, spectrum
from jax_interp.decomposition.metrics.truth import Recovery, agreement, recovery

__all__ = [
    "MaskReport", "Recovery", "agreement", "alive", "dense_error", "hidden_report", "identity_error", "l0",
    "mask_report", "pattern_errors", "pgd_curve", "pgd_error", "probe", "recovery", "spectrum",
]  # fmt: skip
