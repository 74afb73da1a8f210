"""What a dictionary is trained for: one file per objective. Each names its reductions."""

from jax_interp.dictionaries.losses.topk_aux import LossParts, aux_loss, default_k_aux, topk_aux_loss

__all__ = ["LossParts", "aux_loss", "default_k_aux", "topk_aux_loss"]
