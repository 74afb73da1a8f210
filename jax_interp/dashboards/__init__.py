"""What a unit fires on: its highest scores in context, its tokens, what it writes.

`collect` goes through a text once and keeps statistics of any scores; `features` does so for a dictionary's latents,
`components` for the components of a decomposition.
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
