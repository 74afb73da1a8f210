"""Does the next block of a Python module raise an error? A vector that makes stdlib-small raise.

    jax-interp steer stdlib_small_steer

Directions go from prompts whose block really returns to prompts whose block really raises. No answer is read.
"""

from jax_interp.recipes.steering.steer import SteerConfig
from jax_interp.steering.finding import CentredPCA, LogisticDirection, MeanDifference

CONFIG = SteerConfig(
    contrast=("continues", "return", "raise"),
    methods=(MeanDifference(), LogisticDirection(), CentredPCA()),
)
