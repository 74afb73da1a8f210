"""What to read for which analysis: `read(model, needed(model, logit_lens, direct_logit_attribution))`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_interp.analysis.attribution import direct_logit_attribution, logit_attrs, logit_directions
from jax_interp.analysis.decomposition import (
    get_full_resid_decomposition,
    stack_head_results,
    stack_neuron_results,
)
from jax_interp.analysis.growth import norm_growth
from jax_interp.analysis.head_detectors import detect_head, diagonal_scores
from jax_interp.analysis.lens import logit_lens
from jax_interp.analysis.lens_tuned import tuned_lens
from jax_interp.analysis.neurons import activation_statistics
from jax_interp.analysis.norm_at_scale import apply_ln_to_stack
from jax_interp.analysis.residual import accumulated_resid, decompose_resid
from jax_interp.analysis.weights import decoder
from jax_interp.core.errors import UserError
from jax_interp.surgery import sites

_STREAM = ("blocks.*.resid_pre", "blocks.-1.resid_post")
_COMPONENTS = ("embed", "pos_embed", "blocks.*.attn_out", "blocks.*.mlp_out")
_HEADS = ("embed", "pos_embed", "blocks.*.attn.z", "blocks.*.ln1_post.scale", "blocks.-1.resid_post")
_NEURONS = ("embed", "pos_embed", "blocks.*.mlp.post", "blocks.*.ln2_post.scale", "blocks.-1.resid_post")
_FINAL = ("ln_final.scale",)
_PATTERNS = ("blocks.*.attn.pattern",)

NEEDED: dict[Callable, tuple[str, ...]] = {
    accumulated_resid: (*_STREAM, "blocks.*.resid_mid"),
    decompose_resid: _COMPONENTS,
    stack_head_results: _HEADS,
    stack_neuron_results: _NEURONS,
    get_full_resid_decomposition: (*_HEADS, *_NEURONS, "blocks.*.mlp_out"),
    apply_ln_to_stack: _FINAL,
    logit_directions: _FINAL,
    logit_attrs: _FINAL,
    direct_logit_attribution: (*_COMPONENTS, *_HEADS, *_NEURONS, *_FINAL),
    logit_lens: (*_STREAM, "blocks.*.resid_mid"),
    tuned_lens: _STREAM,
    norm_growth: (*_STREAM, "blocks.*.attn_out", "blocks.*.mlp_out"),
    detect_head: _PATTERNS,
    diagonal_scores: _PATTERNS,
    activation_statistics: ("blocks.*.mlp.pre", "blocks.*.mlp.post"),
}
"""All that each function may read of a whole forward pass (`layer=None`), with its options."""


def needed(model: Any, *functions: Callable) -> tuple[str, ...]:
    """The addresses of this model that these analyses read: an address for `read`.

    Everything that their options may ask for; a part of it is read by its addresses. What a model does not have
    (position vectors, mid points of parallel blocks, norms after attention) is left out.
    """
    for function in functions:
        if function not in NEEDED:
            known = ", ".join(known.__name__ for known in NEEDED)
            raise UserError(f"{getattr(function, '__name__', function)!r} reads no activations; these do: {known}")
    exist = sites(decoder(model))(jax.ShapeDtypeStruct((1, 1), jnp.int32))
    wanted = dict.fromkeys(address for function in functions for address in NEEDED[function])
    return tuple(address for address in wanted if _sample(address) in exist)


def _sample(address: str) -> str:
    """One of the values that an address names."""
    return address.replace("blocks.*.", "blocks.0.").replace("blocks.-1.", "blocks.0.")
