"""Features of dictionaries as steering.

feature_steering.py  latents as a `Steering`: add, clamp, raise; the decoder direction as a steering vector
feature_edits.py     the edits
activations.py       the highest activation of each latent on a text
"""

from jax_interp.steering.features.activations import highest_activations
from jax_interp.steering.features.feature_edits import WriteFeatures
from jax_interp.steering.features.feature_steering import FeatureSteering, decoder_vector, steer_features

__all__ = ["FeatureSteering", "WriteFeatures", "decoder_vector", "highest_activations", "steer_features"]
