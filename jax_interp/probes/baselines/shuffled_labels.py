"""Labels without meaning: shuffled within the training part."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int


def shuffled_within(
    labels: Int[np.ndarray, "example *pos"], part: Bool[np.ndarray, "example *pos"], seed: int
) -> Int[np.ndarray, "example *pos"]:
    """The labels, permuted at random within a part. Labels outside stay, and so do the numbers of each class.

    Args:
      labels: the label of each example, or of each token.
      part: the examples (or tokens) whose labels are shuffled.
      seed: the seed of the permutation.
    """
    found = np.array(labels)
    found[part] = np.random.default_rng(seed).permutation(found[part])
    return found
