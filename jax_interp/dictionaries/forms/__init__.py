"""The forms of dictionaries: what a dictionary reads and what it writes. The activation is a field of the form."""

from jax_interp.core.registry import discover
from jax_interp.dictionaries.forms.dictionary import Dictionary, init_sae, init_transcoder, site_norms
from jax_interp.dictionaries.forms.form import FORMS, Form
from jax_interp.dictionaries.forms.normalised import Normalised
from jax_interp.dictionaries.forms.temporal import Temporal

discover(__name__, __path__)

__all__ = ["FORMS", "Dictionary", "Form", "Normalised", "Temporal", "init_sae", "init_transcoder", "site_norms"]
