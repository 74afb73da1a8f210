"""SAELens: `cfg.json` and `sae_weights.safetensors`, of all architectures and versions, training checkpoints included.

What belongs to training is folded in: a known scale of the inputs, a whitening, decoder norms that latents are
multiplied by, the threshold of BatchTopK. A norm of each single input cannot be folded, and stays as a `Normalised`.
The latents are those that `sae_lens` gives after it has loaded the files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import AbsTopK, Activation, Gate, Jump, MatchingPursuit, ReLU, TopK
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.folding import (
    exact_row_norms,
    fold_decoder_norms,
    fold_input_scale,
    fold_whitening,
)
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.saelens_config import BATCH_TOPK, SAELensConfig, read_config
from jax_interp.dictionaries.formats.saelens_labels import labels_of
from jax_interp.dictionaries.formats.saelens_temporal import read_temporal
from jax_interp.dictionaries.formats.saelens_writing import write_saelens
from jax_interp.dictionaries.formats.tensor_shapes import checked, one_dtype
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.forms.normalised import Normalised, TokenNorm
from jax_interp.dictionaries.storage import Saved

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SPARSITY, SCALER, WHITENING = "sparsity.safetensors", "activation_scaler.json", "activation_whitening.safetensors"
FACTOR = "norm_scaling_factor"
_TOKEN_NORMS: dict[str, TokenNorm] = {"layer_norm": "layer_norm", "constant_norm_rescale": "fixed_norm"}

_ENCODER = {"W_enc": "d m", "b_enc": "m", "W_dec": "m d", "b_dec": "d"}
_TRANSCODER = {"W_enc": "d m", "b_enc": "m", "W_dec": "m d_out", "b_dec": "d_out"}
_AXES: dict[str, dict[str, str]] = {
    "standard": _ENCODER,
    "topk": _ENCODER,
    "abstopk": _ENCODER,
    "jumprelu": _ENCODER | {"threshold": "m"},
    **dict.fromkeys(BATCH_TOPK, _ENCODER | {"topk_threshold": ""}),
    "gated": {"W_enc": "d m", "W_dec": "m d", "b_dec": "d", "b_gate": "m", "b_mag": "m", "r_mag": "m"},
    "matching_pursuit": {"W_dec": "m d", "b_dec": "d"},
    "transcoder": _TRANSCODER,
    "skip_transcoder": _TRANSCODER | {"W_skip": "d_out d"},
    "jumprelu_transcoder": _TRANSCODER | {"threshold": "m"},
    "jumprelu_skip_transcoder": _TRANSCODER | {"threshold": "m", "W_skip": "d_out d"},
}


@FORMATS.register
class SAELens(Format):
    """Dictionaries of SAELens."""

    name = "saelens"
    title = "SAELens"
    hub_files = (
        f"{{path}}/{CONFIG}", f"{{path}}/{WEIGHTS}", f"{{path}}/{SPARSITY}", f"{{path}}/{SCALER}",
        f"{{path}}/{WHITENING}",
    )  # fmt: skip
    writes = True

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return files.selected in (None, CONFIG, WEIGHTS) and CONFIG in files and WEIGHTS in files

    @classmethod
    def read(cls, files: Files) -> Saved:
        given = files.json(CONFIG)
        config = read_config(given, {name: value for name, value in files.settings.items() if name != FACTOR})
        if config.architecture == "temporal":
            dictionary = read_temporal(config, files, WEIGHTS)
        else:
            dictionary = _read(config, files)
        labels = labels_of(config)
        return Saved(
            dictionary,
            labels.address,
            labels.model,
            given,
            labels.writes,
            format=cls.name,
            notes=labels.notes,
            stated=_stated(config, files),
            normalized=labels.normalized,
        )

    @classmethod
    def write(cls, saved: Saved, directory: Path) -> Path:
        return write_saelens(saved, directory)


def _read(config: SAELensConfig, files: Files) -> Dictionary | Normalised:
    tensors = _tensors(config, files)
    activation = _activation(config, tensors, files)
    dtype_of = "W_enc" if "W_enc" in tensors else "W_dec"
    weights: dict[str, Any] = {
        name: files.place(name, array.T if name == "W_skip" else array)
        for name, array in one_dtype({n: tensors[n] for n in _ROLES if n in tensors}, dtype_of).items()
    }
    if config.architecture == "matching_pursuit":
        weights |= _without_encoder(weights["W_dec"])
        if not config.centred:  # it is neither subtracted nor added then
            weights["b_dec"] = jnp.zeros_like(weights["b_dec"])
    if config.architecture == "gated":
        weights["b_enc"] = weights.pop("b_gate")
    dictionary = Dictionary(**weights, activation=activation, centred=config.centred)
    if "scaling_factor" in tensors:
        scale = files.place("scaling_factor", tensors["scaling_factor"]).astype(dictionary.W_dec.dtype)
        dictionary = dataclasses.replace(dictionary, W_dec=dictionary.W_dec * scale[:, None])
    return _with_token_norm(config, _folded(config, dictionary, files))


_ROLES = ("W_enc", "b_enc", "b_gate", "W_dec", "b_dec", "W_skip")


def _tensors(config: SAELensConfig, files: Files) -> dict[str, np.ndarray]:
    """The tensors of the file, checked. A `scaling_factor` of ones is left out."""
    found = dict(files.tensors(WEIGHTS))
    axes = dict(_AXES[config.architecture])
    if "log_threshold" in found and "threshold" in axes:
        if "threshold" in found:
            raise UserError(f"{WEIGHTS} has both 'threshold' and 'log_threshold'")
        axes["log_threshold"] = axes.pop("threshold")
    sizes = {"d": config.d_in, "m": config.d_sae}
    if config.is_transcoder:
        sizes["d_out"] = config.get("d_out", int)
    tensors, _ = checked(found, WEIGHTS, axes, {"scaling_factor": "m"}, sizes)
    if "scaling_factor" in tensors and np.allclose(tensors["scaling_factor"], 1):
        del tensors["scaling_factor"]
    if "scaling_factor" in tensors and not config.scales_latents:
        raise UserError(f"{WEIGHTS} has a 'scaling_factor' other than 1, but finetuning_scaling_factor is not true")
    return tensors


def _activation(config: SAELensConfig, tensors: Mapping[str, np.ndarray], files: Files) -> Activation:
    architecture = config.architecture
    if architecture in ("topk", "abstopk"):
        kind = TopK if architecture == "topk" else AbsTopK
        weighted = config.get("rescale_acts_by_decoder_norm", bool, False)
        return kind(_k(config, "k", config.get("k", int)), weighted=weighted)
    if architecture == "matching_pursuit":
        steps = config.get("max_iterations", int, None)
        least = config.get("residual_threshold", float, 1e-2)
        return MatchingPursuit(
            _k(config, "max_iterations", config.d_in if steps is None else steps),
            retakes=True,
            residual_threshold=max(least, 0.0),
            stop_at_retake=config.get("stop_on_duplicate_support", bool, True),
        )
    if architecture == "gated":
        parts = (files.place(f"activation.{name}", tensors[name]) for name in ("r_mag", "b_mag"))
        return Gate(*parts)
    if "log_threshold" in tensors:
        return Jump(files.place("activation.log_threshold", tensors["log_threshold"]).astype(jnp.float32))
    if "threshold" in tensors:
        return Jump.of(files.place("activation.log_threshold", tensors["threshold"]))
    if architecture in BATCH_TOPK:
        threshold = float(tensors["topk_threshold"])
        if not 0 < threshold < float("inf"):
            raise UserError(
                f"{WEIGHTS} has topk_threshold {threshold:g}, which is not above 0: a checkpoint of before the first "
                "step has 0"
            )
        return Jump.of(jnp.full((config.d_sae,), threshold, jnp.float32))
    return ReLU()


def _k(config: SAELensConfig, name: str, k: int) -> int:
    if not 1 <= k <= config.d_sae:
        raise UserError(f"cfg.json has {name} {k}; with {config.d_sae} latents it is from 1 to {config.d_sae}")
    return k


def _without_encoder(W_dec: Any) -> dict[str, Any]:
    """The encoder of matching pursuit, which is never used."""
    return {"W_enc": W_dec.T, "b_enc": jnp.zeros((W_dec.shape[0],), W_dec.dtype)}


def _folded(config: SAELensConfig, dictionary: Dictionary, files: Files) -> Dictionary:
    """Fold scales and decoder norms. SAELens multiplies latents by the norms that rows have after a scale is folded,
    and before a whitening is folded."""
    mode, architecture = config.normalize, config.architecture
    by_norms = config.get("rescale_acts_by_decoder_norm", bool, architecture in BATCH_TOPK)
    one = jnp.ones((), dictionary.W_dec.dtype)
    norms = jnp.maximum(exact_row_norms(dictionary.W_dec), 1e-8).astype(one.dtype) if by_norms else one
    if by_norms and architecture in BATCH_TOPK:  # the threshold is for products with the norms
        dictionary = dataclasses.replace(dictionary, activation=dictionary.activation.scaled(1 / norms))
    scale = _known_scale(config, files)
    if scale is not None:
        dictionary, norms = fold_input_scale(dictionary, scale), norms / jnp.asarray(scale, norms.dtype)
    if by_norms:
        dictionary = fold_decoder_norms(dictionary, norms)
    if mode == "covariance_whitening":
        dictionary = fold_whitening(dictionary, *_whitening(config, files))
    return dictionary


def _known_scale(config: SAELensConfig, files: Files) -> float | None:
    """The number that inputs were multiplied by in training, if it is not folded into the weights yet."""
    stated = files.json(SCALER).get("scaling_factor") if SCALER in files else None
    given = files.settings.get(FACTOR)
    if config.normalize != "expected_average_only_in":
        if stated is not None:
            raise UserError(f"{SCALER} has a scaling_factor, but normalize_activations is {config.normalize!r}")
        return None
    if config.architecture == "matching_pursuit":
        raise UserError("the scale of the inputs cannot be folded into matching pursuit: its encoder is its decoder")
    scale = stated if given is None else given
    if scale is None:
        raise UserError(
            "normalize_activations is 'expected_average_only_in', and the files do not say by which number inputs were "
            f'multiplied: write {{"scaling_factor": s}} to {SCALER} beside them, where s is sqrt(d_in) divided by the '
            "mean norm of the activations"
        )
    if type(scale) not in (int, float) or not 0 < scale < float("inf"):
        raise UserError(f"the scaling factor of the inputs is {scale!r}, which is not a number above 0")
    return float(scale)


def _whitening(config: SAELensConfig, files: Files) -> tuple[Any, Any, Any]:
    if config.architecture == "matching_pursuit":
        raise UserError("a whitening cannot be folded into matching pursuit: its encoder is its decoder")
    if WHITENING not in files:
        raise UserError(f"normalize_activations is 'covariance_whitening', but there is no {WHITENING} with the matrix")
    axes = {"mean": "d", "matrix": "d d", "inverse_matrix": "d d"}
    tensors, _ = checked(files.tensors(WHITENING), WHITENING, axes, sizes={"d": config.d_in})
    return tensors["mean"], tensors["matrix"], tensors["inverse_matrix"]


def _with_token_norm(config: SAELensConfig, dictionary: Dictionary) -> Dictionary | Normalised:
    norm = _TOKEN_NORMS.get(config.normalize)
    if norm is None:
        return dictionary
    return Normalised(dictionary, norm, undo=not config.is_transcoder)


def _stated(config: SAELensConfig, files: Files) -> dict[str, float]:
    """L0 and the number of dead latents at the end of training."""
    stated: dict[str, float] = {}
    for name, theirs in (("l0", "l0"), ("dead", "num_dead_features")):
        value: Any = config.metadata.get(theirs)
        if type(value) in (int, float):
            stated[name] = float(value)
    if SPARSITY in files:
        tensors, _ = checked(files.tensors(SPARSITY), SPARSITY, {"sparsity": "m"}, sizes={"m": config.d_sae})
        logarithms = tensors["sparsity"].astype(np.float64)
        if not np.isfinite(logarithms).all():
            raise UserError(f"{SPARSITY} has numbers that are NaN or infinite")
        frequency = 10.0**logarithms  # a latent that never fired has 1e-10
        stated |= {"l0": float(frequency.sum()), "dead": float((frequency < 2e-10).sum())}
    return stated
