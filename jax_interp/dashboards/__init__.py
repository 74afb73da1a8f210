"""What a unit fires on and what it writes. A unit is a latent, a component, a neuron or a probe.

`collect` reads a text once and keeps statistics of the scores of units. `features` uses it for the latents of a
dictionary, and `components` for the components of a decomposition.
"""

from jax_interp.dashboards.collector import Scores, Statistic, collect
from jax_interp.dashboards.features import features_on_token, logit_effect, top_activations
from jax_interp.dashboards.statistics import InputTokens, OnToken, Passages, PredictedTokens, TopWindows

__all__ = [
    "InputTokens",
    "OnToken",
    "Passages",
    "PredictedTokens",
    "Scores",
    "Statistic",
    "TopWindows",
    "collect",
    "features_on_token",
    "logit_effect",
    "top_activations",
]
