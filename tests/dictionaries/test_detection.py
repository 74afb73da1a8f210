"""Precision, recall and F1 of latents: counted by hand, in batches, 0 where undefined."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jax_interp.dictionaries.evaluation.batch_sums import add_batch
from jax_interp.dictionaries.evaluation.recovery import Detection, detection_counts


def test_detection_by_hand():
    codes = np.zeros((100, 3))
    codes[:40, 0], codes[90:, 1] = 2.0, 1.0  # feature 2 is never on
    z = np.zeros((100, 4))
    z[20:60, 0] = 0.3  # half right, half of it caught
    z[90:95, 1] = 0.1  # always right, half caught
    z[::2, 2] = 1.0  # tracks a feature that never is on
    feature = jnp.asarray([0, 1, 2, 0])  # latent 3 never fires
    counts = None
    for part in np.array_split(np.arange(100), 4):
        counts = add_batch(counts, detection_counts(jnp.asarray(z[part]), jnp.asarray(codes[part]), feature))
    found = Detection.from_counts(counts)
    np.testing.assert_allclose(found.precision, [0.5, 1, 0, 0])
    np.testing.assert_allclose(found.recall, [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(found.f1, [0.5, 2 / 3, 0, 0])
    assert counts["both"].dtype == np.int64
