"""Where a dictionary reads and where it writes: one file per form. The activation is a field of it."""

from jax_interp.dictionaries.forms.sae import SAE, init_sae

__all__ = ["SAE", "init_sae"]
