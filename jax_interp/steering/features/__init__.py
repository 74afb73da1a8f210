"""Features of dictionaries as steering, and the choice of features by their effect on the output.

feature_steering.py  latents as a `Steering`: add, clamp, raise; the decoder direction as a steering vector
feature_edits.py     the edits
activations.py       the highest activation of each latent on a text
target_texts.py      texts that steering should make likelier
effects.py           the effect of each latent on them: to first order for all, measured for a few
output_scores.py     whether steering with a latent makes the model write the tokens that its decoder promotes
input_scores.py      how well a latent tells texts of a concept from others
ranking.py           all of these side by side
resumed_run.py       many edits of one run, whose earlier blocks run once
"""

from jax_interp.steering.features.activations import highest_activations
from jax_interp.steering.features.effects import gradient_effects, means_by_group, measured_effects
from jax_interp.steering.features.feature_edits import WriteFeatures
from jax_interp.steering.features.feature_steering import FeatureSteering, decoder_vector, some_features, steer_features
from jax_interp.steering.features.input_scores import highest_by_text, input_scores
from jax_interp.steering.features.output_scores import OutputScores, output_scores, promoted_tokens
from jax_interp.steering.features.ranking import RankedFeature, RankedFeatures, rank_features
from jax_interp.steering.features.target_texts import TargetTexts, target_texts

__all__ = [
    "FeatureSteering",
    "OutputScores",
    "RankedFeature",
    "RankedFeatures",
    "TargetTexts",
    "WriteFeatures",
    "decoder_vector",
    "gradient_effects",
    "highest_activations",
    "highest_by_text",
    "input_scores",
    "means_by_group",
    "measured_effects",
    "output_scores",
    "promoted_tokens",
    "rank_features",
    "some_features",
    "steer_features",
    "target_texts",
]
