"""Probes: what can be read from a model, and how far to trust it."""

from jax_interp.probes.fit import FittedProbes, fit_probes
from jax_interp.probes.gather import Sequences, Vectors, gather, gather_tokens
from jax_interp.probes.kind import KINDS, Kind
from jax_interp.probes.kinds.mean_difference import MeanDifference
from jax_interp.probes.labelled_ids import from_tokens
from jax_interp.probes.labelled_texts import tokenized
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.probe import PROBES, LinearProbe, Probe
from jax_interp.probes.splits import Split, given_split, group_split, leaking_groups, random_split
from jax_interp.probes.text_spans import with_token_labels
from jax_interp.probes.token_rules import (
    TOKEN_RULES,
    AfterSpan,
    All,
    BeforeSpan,
    Last,
    LastOfSpan,
    Nth,
    Span,
    TokenRule,
    tokens_of,
)

__all__ = [
    "KINDS",
    "PROBES",
    "TOKEN_RULES",
    "AfterSpan",
    "All",
    "BeforeSpan",
    "FittedProbes",
    "Kind",
    "LabelledTokens",
    "Last",
    "LastOfSpan",
    "LinearProbe",
    "MeanDifference",
    "Nth",
    "Probe",
    "Sequences",
    "Span",
    "Split",
    "TokenRule",
    "Vectors",
    "fit_probes",
    "from_tokens",
    "gather",
    "gather_tokens",
    "given_split",
    "group_split",
    "leaking_groups",
    "random_split",
    "tokenized",
    "tokens_of",
    "with_token_labels",
]
