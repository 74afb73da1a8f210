"""How well scores tell two classes apart: ROC, recall at a rate of false alarms, calibration, and their intervals."""

from jax_interp.probes.measures.calibration import Calibration, calibration
from jax_interp.probes.measures.intervals import clopper_pearson, newcombe, share_interval
from jax_interp.probes.measures.recall import RecallAtFpr, recall_at_fpr, threshold_at_fpr
from jax_interp.probes.measures.roc import Roc, auroc, auroc_difference, auroc_interval, roc_curve

__all__ = [
    "Calibration",
    "RecallAtFpr",
    "Roc",
    "auroc",
    "auroc_difference",
    "auroc_interval",
    "calibration",
    "clopper_pearson",
    "newcombe",
    "recall_at_fpr",
    "roc_curve",
    "share_interval",
    "threshold_at_fpr",
]
