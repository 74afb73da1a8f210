"""What scikit-learn computes from scores, probabilities and counts of words.

python sklearn_probe_measures.py IN.npz OUT.npz
"""

import sys

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve

given = np.load(sys.argv[1])
y, scores, p, counts, train = (given[name] for name in ("y", "scores", "p", "counts", "train"))
false_positive, true_positive, _ = roc_curve(y, scores, drop_intermediate=False)
frequency, confidence = calibration_curve(y, p, n_bins=10)
words = {}
for C in (0.01, 1.0, 100.0):
    model = LogisticRegression(C=C, tol=1e-10, max_iter=100_000).fit(counts[train], y[train])
    words[f"words {C}"] = model.decision_function(counts)
np.savez(
    sys.argv[2],
    auroc=roc_auc_score(y, scores),
    false_positive=false_positive,
    true_positive=true_positive,
    brier=brier_score_loss(y, p),
    log_loss=log_loss(y, p),
    frequency=frequency,
    confidence=confidence,
    **words,
)
