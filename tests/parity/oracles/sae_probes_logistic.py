"""Logistic regression as scikit-learn fits it: the scores of all rows, and the AUROC of test rows.

sae_probes_logistic.py IN.npz OUT.npz, with x [problem, row, d], y [row], train [row], test [row], C [strength]
"""

import sys

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

given = np.load(sys.argv[1])
x, y, train, test = (given[name] for name in ("x", "y", "train", "test"))
scores = np.zeros((len(x), len(given["C"]), len(y)))
for p, rows in enumerate(x.astype(np.float64)):
    for c, C in enumerate(given["C"]):
        probe = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-8, max_iter=1000)
        scores[p, c] = probe.fit(rows[train], y[train]).decision_function(rows)
areas = [[roc_auc_score(y[test], s[test]) for s in of_problem] for of_problem in scores]
np.savez(sys.argv[2], scores=scores, areas=areas)
