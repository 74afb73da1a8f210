"""What scikit-learn computes from arrays: spectral clusters, F ratios, Cohen's kappa, mutual information.

python sklearn_figures.py IN.npz OUT.npz
"""

import sys

import numpy as np
from sklearn.cluster import SpectralClustering
from sklearn.feature_selection import f_classif
from sklearn.metrics import cohen_kappa_score, mutual_info_score

given = np.load(sys.argv[1])
unit = given["W"] / np.linalg.norm(given["W"], axis=1, keepdims=True)
similarity = 1 - np.arccos(np.clip(unit @ unit.T, -1, 1)) / np.pi
clusters = SpectralClustering(int(given["n"]), affinity="precomputed", random_state=0).fit(similarity).labels_
a, b = given["a"], given["b"]
np.savez(
    sys.argv[2],
    clusters=clusters,
    F=f_classif(given["z"], given["classes"])[0],
    kappa=cohen_kappa_score(a, b),
    information=mutual_info_score(a, b),
)
