"""Write dictionaries as files that `sae_lens.SAE.load_from_disk` loads to the same latents and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jax_interp.core.atomic_write import make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import write_json
from jax_interp.core.tensor_files import write_tensors
from jax_interp.dictionaries.activations import (
    AbsTopK,
    BatchTopK,
    Gate,
    Jump,
    MatchingPursuit,
    ReLU,
    TopK,
)
from jax_interp.dictionaries.formats.saelens_config import METADATA
from jax_interp.dictionaries.forms import Dictionary, Normalised, Temporal
from jax_interp.dictionaries.storage import Saved

VERSION = "6.54.12"
"""The version of SAELens whose layout is written. It takes a file without a version for one of before version 6."""
_NORMS = {"layer_norm": "layer_norm", "fixed_norm": "constant_norm_rescale"}
_ATTENTION = {"Q": "q_target", "K": "k_ctx", "V": "v_ctx", "O": "c_proj"}


def write_saelens(saved: Saved, directory: Path) -> Path:
    """Write `cfg.json` and `sae_weights.safetensors`. Returns the directory.

    Raises:
      UserError: SAELens has no architecture for this dictionary, or its addresses are not those of TransformerLens.
    """
    settings, tensors = _contents(saved)
    directory = make_directory(directory)
    write_tensors(directory / "sae_weights.safetensors", tensors)
    write_json(directory / "cfg.json", settings | {"metadata": _metadata(saved)})
    return directory


def _contents(saved: Saved) -> tuple[dict[str, Any], dict[str, Array]]:
    """(the settings of cfg.json, the tensors)."""
    dictionary, norm = saved.dictionary, "none"
    if isinstance(dictionary, Temporal):
        return _temporal(saved, dictionary)
    if isinstance(dictionary, Normalised):
        dictionary, norm = dictionary.dictionary, _NORMS[dictionary.norm]
    if not isinstance(dictionary, Dictionary):
        raise UserError(f"SAELens has no architecture for a {type(dictionary).__name__}")
    sites = max(dictionary.write_sites, *(len(a) if isinstance(a, tuple) else 1 for a in (saved.address, saved.writes)))
    if sites > 1:
        raise UserError(f"SAELens has no architecture for a dictionary of {sites} values")
    if isinstance(dictionary.activation, BatchTopK):  # as SAELens saves one itself
        dictionary = dictionary.activation.as_jumprelu(dictionary)
    if dictionary.activation.limit is not None:
        raise UserError("an activation with a limit cannot be written for SAELens: use with_k")
    if dictionary.activation.weighted:
        raise UserError(
            f"SAELens multiplies the latents of a weighted {type(dictionary.activation).__name__} by their decoder "
            "norms: fold them first, with formats.folding.fold_decoder_norms"
        )
    transcoder = _is_transcoder(saved, dictionary)
    if transcoder and dictionary.centred:
        raise UserError("a transcoder of SAELens subtracts nothing from its input: fold its centre first (fold_centre)")
    architecture, more, tensors = _architecture(dictionary, transcoder)
    settings = {
        "architecture": architecture,
        "d_in": dictionary.d,
        "d_sae": dictionary.n_features,
        **_common(saved, str(dictionary.W_enc.dtype), dictionary.centred, norm),
        **more,
    }
    return settings, tensors


def _is_transcoder(saved: Saved, dictionary: Dictionary) -> bool:
    same_value = saved.writes is None or saved.writes == saved.address
    undone = not isinstance(saved.dictionary, Normalised) or saved.dictionary.undo
    return not (dictionary.is_autoencoder() and same_value and undone and saved.normalized is None)


def _common(saved: Saved, dtype: str, centred: bool, norm: str) -> dict[str, Any]:
    """The settings of every architecture."""
    of_heads = isinstance(saved.address, str) and saved.address.endswith("attn.z")
    return {
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": centred,
        "normalize_activations": norm,
        "reshape_activations": "hook_z" if of_heads and saved.writes in (None, saved.address) else "none",
    }


def _architecture(dictionary: Dictionary, transcoder: bool) -> tuple[str, dict[str, Any], dict[str, Array]]:
    """(name of the architecture, its settings, its tensors)."""
    activation, kind = dictionary.activation, type(dictionary.activation)
    tensors = {name: getattr(dictionary, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if transcoder:
        names = {ReLU: "transcoder", Jump: "jumprelu_transcoder"}
        if kind not in names:
            raise UserError(f"SAELens has transcoders of ReLU and JumpReLU, not of {kind.__name__}")
        name = names[kind]
        if dictionary.W_skip is not None:
            name = name.replace("transcoder", "skip_transcoder")
            tensors["W_skip"] = dictionary.W_skip.T
        more = {"d_out": dictionary.W_dec.shape[1]}
    elif isinstance(activation, MatchingPursuit):
        return _matching_pursuit(dictionary, activation)
    else:
        names = {ReLU: "standard", Jump: "jumprelu", TopK: "topk", AbsTopK: "abstopk", Gate: "gated"}
        if kind not in names:
            raise UserError(f"SAELens has no architecture for {kind.__name__}")
        name, more = names[kind], {}
    if isinstance(activation, TopK):
        more = {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    if isinstance(activation, Jump):
        threshold = activation.threshold.astype(dictionary.W_enc.dtype)
        tensors["threshold"] = jnp.broadcast_to(threshold, (dictionary.n_features,))
    if isinstance(activation, Gate):
        tensors |= {"b_gate": tensors.pop("b_enc"), "r_mag": activation.r_mag, "b_mag": activation.b_mag}
    return name, more, tensors


def _matching_pursuit(
    dictionary: Dictionary, activation: MatchingPursuit
) -> tuple[str, dict[str, Any], dict[str, Array]]:
    if not activation.retakes:
        raise UserError(
            "matching pursuit in SAELens may take a feature again, and this one does not (retakes=False): the latents "
            "would differ"
        )
    more = {
        "residual_threshold": activation.residual_threshold,
        "max_iterations": activation.k,
        "stop_on_duplicate_support": activation.stop_at_retake,
        "apply_b_dec_to_input": True,  # it always subtracts b_dec
    }
    return "matching_pursuit", more, {"W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec}


def _temporal(saved: Saved, dictionary: Temporal) -> tuple[dict[str, Any], dict[str, Array]]:
    m, d = dictionary.W_dec.shape
    tied = dictionary.W_enc is None
    if tied and not dictionary.centred:
        raise UserError("a tied temporal dictionary of SAELens subtracts b_dec from its input, and this one does not")
    if not dictionary.layers:
        raise UserError("a temporal dictionary without attention layers cannot be written for SAELens")
    widths = {layer.b_Q.shape[0] for layer in dictionary.layers}
    factor = m // max(widths)
    if len(widths) > 1 or widths != {m // factor} or m % (factor * dictionary.n_heads):
        raise UserError(f"SAELens has no temporal dictionary of {m} latents with keys of width {sorted(widths)}")
    tensors = {"W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec}
    if dictionary.W_enc is not None:
        tensors["W_enc"] = dictionary.W_enc
    for i, layer in enumerate(dictionary.layers):
        for role, name in _ATTENTION.items():
            tensors[f"attn_layers.{i}.{name}.weight"] = getattr(layer, f"W_{role}").T
            tensors[f"attn_layers.{i}.{name}.bias"] = getattr(layer, f"b_{role}")
    settings = {
        "architecture": "temporal",
        "d_in": d,
        "d_sae": m,
        **_common(saved, str(dictionary.W_dec.dtype), dictionary.centred, "constant_scalar_rescale"),
        "n_heads": dictionary.n_heads,
        "n_attn_layers": len(dictionary.layers),
        "bottleneck_factor": factor,
        "sae_diff_type": "relu" if dictionary.k is None else "topk",
        "kval_topk": dictionary.k,
        "tied_weights": tied,
        "activation_normalization_factor": dictionary.scale,
    }
    return settings, tensors


def _metadata(saved: Saved) -> dict[str, Any]:
    """What the files say about the model. What SAELens files said before is kept."""
    before: Mapping[str, Any] = {}
    if saved.format == "saelens" and isinstance(saved.config, dict):
        before = saved.config.get("metadata") or {n: v for n, v in saved.config.items() if n in METADATA}
    own = {
        "sae_lens_version": VERSION,
        "model_name": saved.model,
        "hook_name": _lens_name(saved.address),
        "hook_name_out": None if saved.writes in (None, saved.address) else _lens_name(saved.writes),
    }
    return {**before, **{name: value for name, value in own.items() if value is not None}}


def _lens_name(address: str | tuple[str, ...] | None) -> str | None:
    """An address in the spelling of TransformerLens: blocks.3.attn.hook_z."""
    if not isinstance(address, str):
        return None
    scope, dot, name = address.rpartition(".")
    return f"{scope}{dot}hook_{name}"
