"""Gemma Scope (Lieberum et al. 2024): JumpReLU SAEs and transcoders of Gemma 2, `params.npz`.

    google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz

The repository names the site, and the folder the layer. The SAEs of "att" read the flattened z of all heads, those of
"mlp" the output of the norm after the MLP.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.folding import fold_input_scale
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.tensor_shapes import checked, one_dtype
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_FILE = "params.npz"
_REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)")
_OTHER_NAMES = {
    "wenc": "W_enc", "w_e": "W_enc", "w_enc": "W_enc", "wdec": "W_dec", "w_d": "W_dec", "w_dec": "W_dec",
    "benc": "b_enc", "b_e": "b_enc", "b_enc": "b_enc", "bdec": "b_dec", "b_d": "b_dec", "b_dec": "b_dec",
    "threshold": "threshold", "scaling_factor": "scaling_factor",
}  # fmt: skip
_UNWEIGHTED = (
    "it reads the normalized stream without the weight of the norm, as in SAELens and circuit-tracer (with this input "
    "the measured L0 is the stated one). The transcoders of Gemma Scope 2 read it with the weight"
)
_UNKNOWN = "the path does not name its repository (gemma-scope-2b-pt-res, ...), so what it reads is not known"


@FORMATS.register
class GemmaScope(Format):
    """SAEs of residual streams, MLP outputs, attention heads and embeddings, and transcoders of the MLPs."""

    name = "gemma-scope"
    title = "Gemma Scope"
    repositories = tuple(
        f"google/gemma-scope-{size}-*-{site}"
        for size in ("2b", "9b", "27b")
        for site in ("res", "mlp", "att", "transcoders")
    )

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return _FILE in files.names()

    @classmethod
    def read(cls, files: Files) -> Saved:
        dictionary = _read_params(files)
        size, kind, site = _place(files)
        if site is None:
            return Saved(dictionary, None, None, format=cls.name, notes=(_UNKNOWN,))
        model = f"google/gemma-2-{size}{'' if kind == 'pt' else '-it'}"
        if _is_embedding(files):
            # The model multiplies its embeddings by sqrt(d), and the SAE reads them before.
            dictionary = fold_input_scale(dictionary, dictionary.d**-0.5)
            notes = (
                "it was trained on the rows of the embedding matrix; the factor sqrt(d) of the model is folded in",
            )
            return Saved(dictionary, "embed", model, format=cls.name, notes=notes, stated=_stated(files))
        layer = _layer(files)
        if site == "transcoders":
            reads, writes = f"blocks.{layer}.ln2.normalized", f"blocks.{layer}.mlp_out"
            return Saved(dictionary, reads, model, None, writes, cls.name, (_UNWEIGHTED,), _stated(files))
        value = {"res": "resid_post", "mlp": "mlp_out", "att": "attn.z"}[site]
        return Saved(dictionary, f"blocks.{layer}.{value}", model, format=cls.name, stated=_stated(files))


def _read_params(files: Files) -> Dictionary:
    found: dict[str, np.ndarray] = {}
    for name, array in files.tensors(_FILE).items():
        known = _OTHER_NAMES.get(name.lower(), name)
        if known in found:
            raise UserError(f"{_FILE} has {known!r} twice, in two spellings")
        found[known] = array
    axes = {"W_enc": "d m", "W_dec": "m d_out", "b_enc": "m", "b_dec": "d_out", "threshold": "m"}
    tensors, _ = checked(found, _FILE, axes, {"scaling_factor": "m"})
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not np.allclose(scaling, 1):
        raise UserError(f"{_FILE} has a 'scaling_factor' other than 1: Gemma Scope does not say what it multiplies")
    threshold = files.place("activation.log_threshold", tensors.pop("threshold"))
    weights: dict[str, Any] = {name: files.place(name, array) for name, array in one_dtype(tensors, "W_enc").items()}
    return Dictionary(**weights, activation=Jump.of(threshold), centred=False)


def _place(files: Files) -> tuple[str | None, str | None, str | None]:
    """(size of the model, pt or it, site) from the path. None where the path does not name the repository."""
    found = _REPOSITORY.findall(files.location)
    return found[-1] if found else (None, None, None)


def _inside(files: Files) -> str:
    """The path below the repository."""
    return _REPOSITORY.split(files.location)[-1]


def _is_embedding(files: Files) -> bool:
    return "embedding" in _inside(files).split("/")


def _layer(files: Files) -> int:
    found = re.findall(r"(?:^|/)layer_(\d+)(?=/|$)", _inside(files))
    if not found:
        raise UserError(f"the path {files.location} does not name the layer: keep the folders of the repository")
    return int(found[-1])


def _stated(files: Files) -> dict[str, float]:
    found = re.findall(r"average_l0_(\d+)", _inside(files))
    return {"l0": float(found[-1])} if found else {}
