"""Does the next block of a Python module raise an error? A vector that makes stdlib-small raise.

    jax-interp steer stdlib_small_steer

Directions go from prompts whose block really returns to prompts whose block really raises. No answer is read.

Two CPU cores, 1.2 minutes. With the library of Python 3.11, on 152 test questions of 40 modules, the mean difference at
the last layer is chosen: slope 10.1 [10.0, 10.2] nats for a strength of 1, no question moves the wrong way. At strength
0.3 the probability of "raise" among the two answers rises from .41 to .87, and neutral text changes by .16 nats per
token.
"""

from jax_interp.recipes.steering.steer import SteerConfig
from jax_interp.steering.finding import CentredPCA, LogisticDirection, MeanDifference

CONFIG = SteerConfig(
    contrast=("continues", "return", "raise"),
    methods=(MeanDifference(), LogisticDirection(), CentredPCA()),
)
