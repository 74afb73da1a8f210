"""End-to-end SAEs (Braun et al. 2024, arXiv:2405.12241): a torch file whose names start with the hook.

    apollo-research/e2e-saes-gpt2/e2e_similar_ce_layer_6.pt       blocks-6-hook_resid_pre.encoder.0.weight, ...

Latents are ReLU(x W + b). Columns of the decoder are normalised when it is used, so they are normalised here, and
latents stay as they are.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.hook_names import hook_value
from jax_interp.dictionaries.formats.linear_layers import layer_axes, relu_sae
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import names_in, only_torch_file, text, torch_contents, torch_file
from jax_interp.dictionaries.storage import Saved

_LAYERS = "encoder.0", "decoder"
PROCESSED = (
    "it was trained on GPT-2 as TransformerLens loads it by default: with the means of what layers write taken away "
    "(`center_writing_weights`)"
)


@FORMATS.register
class EndToEnd(Format):
    """One SAE without a pre-bias."""

    name = "e2e-sae"
    title = "e2e SAE"
    repositories = ("apollo-research/e2e-saes-gpt2",)
    hub_files = ("{path}", "{stem}.yaml")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return any(name.endswith(".encoder.0.weight") for name in names_in(files, torch_file(files)))

    @classmethod
    def read(cls, files: Files) -> Saved:
        name = only_torch_file(files)
        entries = torch_contents(files, name)
        sites = sorted({key.partition(".")[0] for key in entries})
        if len(sites) != 1:
            raise UserError(f"{name} holds SAEs of {', '.join(sites)}; files with one SAE are read")
        site = sites[0]
        found, _ = checked({key.partition(".")[2]: value for key, value in entries.items()}, name, layer_axes(*_LAYERS))
        dictionary = relu_sae(files, found, *_LAYERS)
        norms = jnp.linalg.norm(dictionary.W_dec.astype(jnp.float32), axis=1, keepdims=True)
        norms = jnp.maximum(norms, 1e-12).astype(dictionary.W_dec.dtype)
        dictionary = dataclasses.replace(dictionary, W_dec=dictionary.W_dec / norms)
        config = _config(files, name)
        model = _model(config, files.location)
        value = hook_value(site.replace("-", "."), model)
        notes = [value.note] if value.note else []
        notes += [PROCESSED] if model == "gpt2" else []
        return Saved(dictionary, value.address, model, config, format=cls.name, notes=tuple(notes))


def _config(files: Files, name: str) -> dict | None:
    config = f"{name.rpartition('.')[0]}.yaml"
    return files.yaml(config) if config in files else None


def _model(config: dict | None, location: str) -> str | None:
    stated = None if config is None else text(config, "tlens_model_name", "the YAML file")
    if stated is None and "e2e-saes-gpt2" in location:
        stated = "gpt2"
    return "gpt2" if stated == "gpt2-small" else stated
