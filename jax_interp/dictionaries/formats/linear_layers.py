"""A ReLU SAE without a pre-bias that is stored as two linear layers of torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.forms.dictionary import Dictionary


def layer_axes(encoder: str, decoder: str) -> dict[str, str]:
    """The axes of the tensors of both layers, as `tensor_shapes.checked` expects them."""
    return {
        f"{encoder}.weight": "m d",
        f"{encoder}.bias": "m",
        f"{decoder}.weight": "d m",
        f"{decoder}.bias": "d",
    }


def relu_sae(files: Files, found: Mapping[str, np.ndarray], encoder: str, decoder: str) -> Dictionary:
    """The SAE of the layers `encoder` and `decoder`. Torch stores the weights of a linear layer as [out, in]."""
    return Dictionary(
        W_enc=files.place("W_enc", found[f"{encoder}.weight"].T),
        b_enc=files.place("b_enc", found[f"{encoder}.bias"]),
        W_dec=files.place("W_dec", found[f"{decoder}.weight"].T),
        b_dec=files.place("b_dec", found[f"{decoder}.bias"]),
        activation=ReLU(),
        centred=False,
    )
