"""What a unit fires on and what it writes. A unit is a latent, a component, a neuron or a probe.

`collect` reads a text once and keeps statistics of the scores of units. `collect_features` collects everything that a
page shows about the features of a dictionary, and `collect_units` about units of any other kind. `features` answers
single questions about features, and `components` collects the components of a decomposition.
"""

from jax_interp.analysis.readout import unembedding
from jax_interp.dashboards.collect_features import collect_features, collect_units
from jax_interp.dashboards.collector import Reading, Scores, Statistic, collect
from jax_interp.dashboards.feature_data import FeatureData
from jax_interp.dashboards.features import features_on_token, logit_effect, top_activations
from jax_interp.dashboards.options import Names, PageOptions
from jax_interp.dashboards.statistics import (
    Activity,
    CoFiring,
    InputTokens,
    OnToken,
    Passages,
    PredictedTokens,
    TopWindows,
    UniformWindows,
)
from jax_interp.dashboards.windows import Windows

__all__ = [
    "Activity",
    "CoFiring",
    "FeatureData",
    "InputTokens",
    "Names",
    "OnToken",
    "PageOptions",
    "Passages",
    "PredictedTokens",
    "Reading",
    "Scores",
    "Statistic",
    "TopWindows",
    "UniformWindows",
    "Windows",
    "collect",
    "collect_features",
    "collect_units",
    "features_on_token",
    "logit_effect",
    "top_activations",
    "unembedding",
]
