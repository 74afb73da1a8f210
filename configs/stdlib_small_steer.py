"""Does the next block of a Python module raise an error? A vector that makes stdlib-small raise.

jax-interp steer stdlib_small_steer
"""

from jax_interp.recipes.steering.steer import SteerConfig

CONFIG = SteerConfig()
