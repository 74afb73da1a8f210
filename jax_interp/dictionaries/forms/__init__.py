"""Where a dictionary reads and where it writes. The activation is a field of it, the loss is the trainer's."""

from jax_interp.core.registry import discover
from jax_interp.dictionaries.forms.dictionary import Dictionary, init_sae, init_transcoder, site_norms
from jax_interp.dictionaries.forms.form import FORMS, Form

discover(__name__, __path__)

__all__ = ["FORMS", "Dictionary", "Form", "init_sae", "init_transcoder", "site_norms"]
