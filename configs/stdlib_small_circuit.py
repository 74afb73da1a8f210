"""The circuit of induction in stdlib-small, by EAP-IG.

    jax-interp find-circuit stdlib_small_circuit

Two CPU cores, about a minute.
"""

from jax_interp.recipes.find_circuit import FindCircuitConfig

CONFIG = FindCircuitConfig(model="stdlib-small", task="induction", method="eap-ig")
