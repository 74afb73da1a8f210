"""How a dictionary decides which latents are on: one file per activation, pre-activations -> latents."""

from jax_interp.dictionaries.activations.topk import TopK

__all__ = ["TopK"]
