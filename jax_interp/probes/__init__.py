"""Probes: what can be read from a model, and how far to trust it."""

from jax_interp.probes.fit import FittedProbes, fit_probes
from jax_interp.probes.gather import Sequences, Vectors, gather, gather_tokens
from jax_interp.probes.kind import KINDS, Kind
from jax_interp.probes.kinds.mean_difference import MeanDifference
from jax_interp.probes.labelled_tokens import LabelledTokens, tokenized
from jax_interp.probes.probe import PROBES, LinearProbe, Probe
from jax_interp.probes.token_rules import All, Last, Nth, Span, TokenRule, tokens_of

__all__ = [
    "KINDS",
    "PROBES",
    "All",
    "FittedProbes",
    "Kind",
    "LabelledTokens",
    "Last",
    "LinearProbe",
    "MeanDifference",
    "Nth",
    "Probe",
    "Sequences",
    "Span",
    "TokenRule",
    "Vectors",
    "fit_probes",
    "gather",
    "gather_tokens",
    "tokenized",
    "tokens_of",
]
