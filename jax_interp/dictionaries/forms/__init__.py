"""Where a dictionary reads and where it writes. The activation is a field of it, the loss is the trainer's."""

from jax_interp.dictionaries.forms.dictionary import Dictionary, init_sae, init_transcoder, site_norms

__all__ = ["Dictionary", "init_sae", "init_transcoder", "site_norms"]
