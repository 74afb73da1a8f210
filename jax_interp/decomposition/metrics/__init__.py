"""Metrics of a decomposition.

importance.py   how many components are important and alive; importances on one-hot inputs against known patterns
masks.py        outputs under six kinds of masks: KL, cross-entropy and the share not recovered; hidden activations; the
                worst masks, and the curve over the adversary's steps
truth.py        against known directions: MMCS, ML2R; agreement of two runs
"""

from jax_interp.decomposition.metrics.importance import (
    alive,
    dense_error,
    identity_error,
    l0,
    match_components,
    one_hot_inputs,
    pattern_errors,
    spectrum,
)
from jax_interp.decomposition.metrics.masks import MaskReport, hidden_report, mask_report, pgd_curve, pgd_error
from jax_interp.decomposition.metrics.truth import Recovery, agreement, recovery

__all__ = [
    "MaskReport", "Recovery", "agreement", "alive", "dense_error", "hidden_report", "identity_error", "l0",
    "mask_report", "match_components", "one_hot_inputs", "pattern_errors", "pgd_curve", "pgd_error", "recovery",
    "spectrum",
]  # fmt: skip
