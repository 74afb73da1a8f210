"""Which activations an analysis reads: `read(model, needed(model, logit_lens, direct_logit_attribution))`.

An analysis declares what it may read where it is defined:

    @reads_activations("blocks.*.attn.pattern")
    def detect_head(acts, tokens, ...): ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jax_interp.analysis.weights import decoder
from jax_interp.core.errors import UserError
from jax_interp.surgery import Model, sites

Analysis = TypeVar("Analysis", bound=Callable[..., Any])

NEEDED: dict[Callable[..., Any], tuple[str, ...]] = {}
"""The addresses that each analysis may read, for any options, from a whole forward pass (`layer=None`)."""


def reads_activations(*sources: str | Callable[..., Any]) -> Callable[[Analysis], Analysis]:
    """Function decorator: declare the activations that an analysis may read.

    Args:
      sources: addresses, or other analyses (this adds all addresses that they read).
    """
    addresses: dict[str, None] = {}
    for source in sources:
        addresses |= dict.fromkeys((source,) if isinstance(source, str) else NEEDED[source])

    def register(function: Analysis) -> Analysis:
        NEEDED[function] = tuple(addresses)
        return function

    return register


def needed(model: Model, *functions: Callable[..., Any]) -> tuple[str, ...]:
    """The addresses that some analyses read in this model. Give them to `read`.

    The result has every address that the functions may read with any options. Values that the model does not have
    (position vectors, mid points of parallel blocks, norms after attention) are left out.

    Args:
      model: a decoder, with or without surgery.
      functions: functions of `jax_interp.analysis` that take activations.

    Returns:
      Addresses.

    Raises:
      UserError: a function reads no activations.

    Example:

        addresses = needed(model, logit_lens, direct_logit_attribution)
        logits, acts = call(read(model, addresses), tokens)
    """
    for function in functions:
        if function not in NEEDED:
            known = ", ".join(known.__name__ for known in NEEDED)
            raise UserError(f"{getattr(function, '__name__', function)!r} reads no activations; these do: {known}")
    exist = sites(decoder(model))(jax.ShapeDtypeStruct((1, 1), jnp.int32))
    wanted = dict.fromkeys(address for function in functions for address in NEEDED[function])
    return tuple(address for address in wanted if _one_value(address) in exist)


def _one_value(address: str) -> str:
    """One of the values that match an address."""
    return address.replace("blocks.*.", "blocks.0.").replace("blocks.-1.", "blocks.0.")
