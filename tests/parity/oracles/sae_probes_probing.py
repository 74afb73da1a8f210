"""k-sparse probes by scikit-learn, with the latents and the splits of the caller.

    sae_probes_probing.py IN.npz OUT.npz

IN: z [text, latent], y [text], train [split, text], ks. OUT: for each split s and k the latents `chosen_s_k`, the
scores `scores_s_k` of all texts, and whether the predictions of the test texts are right, `right_s_k`.
"""

import sys

import numpy as np
from sklearn.linear_model import LogisticRegression

given = np.load(sys.argv[1])
z, y = given["z"].astype(np.float64), given["y"]
out = {}
for s, train in enumerate(given["train"]):
    difference = z[train & y].mean(0) - z[train & ~y].mean(0)
    order = np.argsort(-np.abs(difference))
    for k in given["ks"]:
        chosen = order[:k]
        probe = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(z[train][:, chosen], y[train])
        scores = probe.decision_function(z[:, chosen])
        out[f"chosen_{s}_{k}"], out[f"scores_{s}_{k}"] = chosen, scores
        out[f"right_{s}_{k}"] = probe.predict(z[~train][:, chosen]) == y[~train]
np.savez(sys.argv[2], **out)
