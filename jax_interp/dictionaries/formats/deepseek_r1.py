"""The SAE of DeepSeek-R1-Distill-Llama-8B by qresearch: one torch file without a config file.

    qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19/DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt

Other files have the same tensors, so only files whose path names the model are recognised.
"""

from __future__ import annotations

import re

from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.linear_layers import layer_axes, relu_sae
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import names_in, only_torch_file, torch_contents, torch_file
from jax_interp.dictionaries.storage import Saved

_LAYERS = "encoder", "decoder"
_PLACE = re.compile(r"(DeepSeek-R1-Distill-[\w.]+-\d+B)-SAE-l(\d+)")


@FORMATS.register
class DeepSeekR1(Format):
    """A ReLU SAE without a pre-bias, of the residual stream."""

    name = "deepseek-r1"
    title = "DeepSeek-R1 SAE"
    repositories = ("qresearch/DeepSeek-R1-Distill-*-SAE-l*",)
    hub_files = ("{path}",)

    @classmethod
    def recognise(cls, files: Files) -> bool:
        name = torch_file(files)
        if name is None or not _PLACE.search(files.location):
            return False
        return "encoder.weight" in names_in(files, name)

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
        return Saved(dictionary, f"blocks.{layer}.resid_post", f"deepseek-ai/{model}", format=cls.name)
