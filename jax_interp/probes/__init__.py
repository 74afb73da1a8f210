"""Probes: what can be read from a model, and how far to trust it."""

from jax_interp.probes.aggregated import AggregatedProbe
from jax_interp.probes.aggregators import (
    AGGREGATORS,
    Aggregator,
    Attention,
    LastToken,
    Max,
    Mean,
    MeanExcess,
    MultiMax,
    RollingMax,
    SoftmaxMean,
    aggregate,
)
from jax_interp.probes.causal_effect import CausalConfig, ProbabilityDifference, causal_effect
from jax_interp.probes.causal_report import CausalEffect
from jax_interp.probes.descent import Adam
from jax_interp.probes.edits import SetScore, SpliceProbe, class_shift, project_out, stacked_probes, steer
from jax_interp.probes.ensemble import EnsembleProbe, fit_ensemble
from jax_interp.probes.evaluate import EvaluationOptions, evaluate_probes
from jax_interp.probes.fit import fit_probes
from jax_interp.probes.fit_checks import InexactProbeWarning
from jax_interp.probes.fitted import FittedProbes
from jax_interp.probes.folds import grouped_folds
from jax_interp.probes.gather import Sequences, Vectors, gather, gather_tokens
from jax_interp.probes.generalisation import Generalisation, generalisation_matrix
from jax_interp.probes.given_activations import from_activations
from jax_interp.probes.joined_sets import joined
from jax_interp.probes.kind import KINDS, Kind, Solved
from jax_interp.probes.kinds.attention_probe import AttentionProbe, MultiHeadProbe
from jax_interp.probes.kinds.ccs import CCS, ccs_loss
from jax_interp.probes.kinds.crc import CRC
from jax_interp.probes.kinds.k_sparse import KSparse
from jax_interp.probes.kinds.lda import LDA
from jax_interp.probes.kinds.linear_regression import LinearRegression
from jax_interp.probes.kinds.logistic import Logistic
from jax_interp.probes.kinds.mass_mean import MassMean
from jax_interp.probes.kinds.mlp import MLP, MLPProbe
from jax_interp.probes.kinds.pca import LAT, PCA
from jax_interp.probes.kinds.ridge import Ridge, RidgeClassifier
from jax_interp.probes.kinds.softmax import Softmax
from jax_interp.probes.kinds.streamed_logistic import StreamedLogistic
from jax_interp.probes.kinds.token_probe import TokenProbe
from jax_interp.probes.labelled_chats import CHATML, ChatFormat, from_chats
from jax_interp.probes.labelled_ids import from_tokens
from jax_interp.probes.labelled_tables import Columns, from_table
from jax_interp.probes.labelled_texts import tokenized
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.length_confound import LengthConfound, length_confound
from jax_interp.probes.moves import Moves, moves_along
from jax_interp.probes.multiclass_probe import MulticlassProbe
from jax_interp.probes.pair_probe import PairProbe
from jax_interp.probes.principal_views import PrincipalView, principal_view
from jax_interp.probes.probe import PROBES, LinearProbe, Probe
from jax_interp.probes.readability import Readability, linear_readability
from jax_interp.probes.regression_probe import RegressionProbe
from jax_interp.probes.report import ProbeFigures, ProbeReport, Score
from jax_interp.probes.report_causes import Answers
from jax_interp.probes.restyling import augmented, parts_of, restyled
from jax_interp.probes.saving import ProbeFileError, load_probes, save_probes
from jax_interp.probes.splits import Split, given_split, group_split, leaking_groups, random_split
from jax_interp.probes.statements import Statements, city_statements, combinations, comparisons, translations
from jax_interp.probes.stored_rows import gather_rows
from jax_interp.probes.stream_logistic import stream_logistic
from jax_interp.probes.streamed_moments import StreamedMoments, stream_moments
from jax_interp.probes.text_spans import with_token_labels
from jax_interp.probes.thresholds import best_threshold
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
from jax_interp.probes.token_streams import TokenStream, stream_of
from jax_interp.probes.within_class_shuffle import shuffle_within_classes

__all__ = [
    "AGGREGATORS",
    "CCS",
    "CHATML",
    "CRC",
    "KINDS",
    "LAT",
    "LDA",
    "MLP",
    "PCA",
    "PROBES",
    "TOKEN_RULES",
    "Adam",
    "AfterSpan",
    "AggregatedProbe",
    "Aggregator",
    "All",
    "Answers",
    "Attention",
    "AttentionProbe",
    "BeforeSpan",
    "CausalConfig",
    "CausalEffect",
    "ChatFormat",
    "Columns",
    "EnsembleProbe",
    "EvaluationOptions",
    "FittedProbes",
    "Generalisation",
    "InexactProbeWarning",
    "KSparse",
    "Kind",
    "LabelledTokens",
    "Last",
    "LastOfSpan",
    "LastToken",
    "LengthConfound",
    "LinearProbe",
    "LinearRegression",
    "Logistic",
    "MLPProbe",
    "MassMean",
    "Max",
    "Mean",
    "MeanExcess",
    "Moves",
    "MultiHeadProbe",
    "MultiMax",
    "MulticlassProbe",
    "Nth",
    "PairProbe",
    "PrincipalView",
    "ProbabilityDifference",
    "Probe",
    "ProbeFigures",
    "ProbeFileError",
    "ProbeReport",
    "Readability",
    "RegressionProbe",
    "Ridge",
    "RidgeClassifier",
    "RollingMax",
    "Score",
    "Sequences",
    "SetScore",
    "Softmax",
    "SoftmaxMean",
    "Solved",
    "Span",
    "SpliceProbe",
    "Split",
    "Statements",
    "StreamedLogistic",
    "StreamedMoments",
    "TokenProbe",
    "TokenRule",
    "TokenStream",
    "Vectors",
    "aggregate",
    "augmented",
    "best_threshold",
    "causal_effect",
    "ccs_loss",
    "city_statements",
    "class_shift",
    "combinations",
    "comparisons",
    "evaluate_probes",
    "fit_ensemble",
    "fit_probes",
    "from_activations",
    "from_chats",
    "from_table",
    "from_tokens",
    "gather",
    "gather_rows",
    "gather_tokens",
    "generalisation_matrix",
    "given_split",
    "group_split",
    "grouped_folds",
    "joined",
    "leaking_groups",
    "length_confound",
    "linear_readability",
    "load_probes",
    "moves_along",
    "parts_of",
    "principal_view",
    "project_out",
    "random_split",
    "restyled",
    "save_probes",
    "shuffle_within_classes",
    "stacked_probes",
    "steer",
    "stream_logistic",
    "stream_moments",
    "stream_of",
    "tokenized",
    "tokens_of",
    "translations",
    "with_token_labels",
]
