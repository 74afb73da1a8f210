"""Compare models: which features a fine-tuned model has that its base model does not have."""

from jax_interp.diffing.crosscoder_diff import PAIR_ADDRESSES, ModelDiff, ModelPair, model_diff
from jax_interp.diffing.exclusive_latents import (
    LatentScaling,
    classify,
    latent_scaling,
    norm_difference,
    relative_norms,
    truly_exclusive,
)

__all__ = [
    "PAIR_ADDRESSES",
    "LatentScaling",
    "ModelDiff",
    "ModelPair",
    "classify",
    "latent_scaling",
    "model_diff",
    "norm_difference",
    "relative_norms",
    "truly_exclusive",
]
