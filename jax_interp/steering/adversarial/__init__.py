"""Training against perturbations of a model's own values (latent adversarial training)."""

from jax_interp.steering.adversarial.losses import Weights
from jax_interp.steering.adversarial.refusals import with_refusal
from jax_interp.steering.adversarial.training import LatentAdversarialConfig, strongest, train_against_perturbations

__all__ = ["LatentAdversarialConfig", "Weights", "strongest", "train_against_perturbations", "with_refusal"]
