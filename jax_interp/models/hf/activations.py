"""What Hugging Face's configs call the activations."""

from __future__ import annotations

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def name_of(act: str, *, tanh: str = "gelu_pytorch_tanh") -> str | None:
    """The name of one of ours; of the two for gelu's approximation the one given. None where there is none."""
    return {"silu": "silu", "gelu": "gelu", "gelu_tanh": tanh, "relu": "relu"}.get(act)
