"""Goodfire's SAEs of Llama 3: one torch file without a config file.

Goodfire/Llama-3.1-8B-Instruct-SAE-l19/Llama-3.1-8B-Instruct-SAE-l19.pth
"""

from __future__ import annotations

import re

from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.linear_layers import layer_axes, relu_sae
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import names_in, only_torch_file, torch_contents, torch_file
from jax_interp.dictionaries.storage import Saved

_LAYERS = "encoder_linear", "decoder_linear"
_PLACE = re.compile(r"(Llama-3[\w.]*-\d+B-Instruct)-SAE-l(\d+)")


@FORMATS.register
class Goodfire(Format):
    """ReLU SAEs without a pre-bias, of the residual stream."""

    name = "goodfire"
    title = "Goodfire"
    repositories = ("Goodfire/Llama-3*-SAE-l*",)
    hub_files = ("{path}",)

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return "encoder_linear.weight" in names_in(files, torch_file(files))

    @classmethod
    def read(cls, files: Files) -> Saved:
        name = only_torch_file(files)
        found, _ = checked(torch_contents(files, name), name, layer_axes(*_LAYERS))
        dictionary = relu_sae(files, found, *_LAYERS)
        place = _PLACE.findall(files.location)
        if not place:
            note = "the path does not name the model and the layer, so what it reads is not known"
            return Saved(dictionary, None, None, format=cls.name, notes=(note,))
        model, layer = place[-1]
        return Saved(dictionary, f"blocks.{layer}.resid_post", f"meta-llama/{model}", format=cls.name)
