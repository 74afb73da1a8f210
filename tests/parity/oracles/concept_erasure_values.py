"""Erase concepts with concept-erasure. Arguments: an `.npz` with x and z, and the `.npz` to write."""

from __future__ import annotations

import sys

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from concept_erasure import LeaceFitter, OracleFitter  # pyright: ignore[reportMissingImports]

given = np.load(sys.argv[1])
x, z = (torch.from_numpy(given[name]).double() for name in ("x", "z"))
found = {}
for name, options in {
    "leace": {"shrinkage": False, "constrain_cov_trace": False},
    "shrunk": {"shrinkage": True, "constrain_cov_trace": False},
    "defaults": {},
    "orthogonal": {"method": "orth"},
}.items():
    found[name] = LeaceFitter.fit(x, z, svd_tol=1e-6, **options).eraser(x).numpy()
found["oracle"] = OracleFitter.fit(x, z, shrinkage=False, svd_tol=1e-9).eraser(x, z).numpy()
np.savez(sys.argv[2], **found)
