"""What a latent or a component fires on: its strongest activations in context, its tokens, what it writes."""

from jax_interp.dashboards.features import features_on_token, logit_effect, top_activations

__all__ = ["features_on_token", "logit_effect", "top_activations"]
