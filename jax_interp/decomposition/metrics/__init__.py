"""Metrics of a decomposition.

importance.py   numbers of important and live components; importances on one-hot inputs, compared with known patterns
masks.py        errors of outputs and of hidden activations under six kinds of masks; errors under the worst masks for
                each number of adversary steps
truth.py        components compared with known directions (MMCS, ML2R), and with the components of another run
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
from jax_interp.decomposition.metrics.masks import MaskReport, hidden_report, mask_report, pgd_curve, pgd_error, share
from jax_interp.decomposition.metrics.truth import Recovery, agreement, recovery

__all__ = [
    "MaskReport", "Recovery", "agreement", "alive", "dense_error", "hidden_report", "identity_error", "l0",
    "mask_report", "match_components", "one_hot_inputs", "pattern_errors", "pgd_curve", "pgd_error", "recovery",
    "share", "spectrum",
]  # fmt: skip
