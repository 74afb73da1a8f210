"""Qwen Scope: TopK SAEs of residual streams, one torch file per layer, without a config file.

    Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50/layer12.sae.pt

The name of the repository tells k and the width. The tensors have the names of SAELens, and both are transposed: the
encoder has one row per feature, the decoder one column per feature.
"""

from __future__ import annotations

import re

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.topk import TopK
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import torch_contents, torch_file
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_REPOSITORY = re.compile(r"SAE-Res-([\w.-]+)-W(\d+)K-L0_(\d+)")


@FORMATS.register
class QwenScope(Format):
    """A TopK SAE without a pre-bias, of the output of a block."""

    name = "qwen-scope"
    title = "Qwen Scope"
    repositories = ("Qwen/SAE-Res-*",)
    hub_files = ("{path}",)

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return _FILE.fullmatch(torch_file(files) or "") is not None

    @classmethod
    def read(cls, files: Files) -> Saved:
        name = torch_file(files) or ""
        layer, place = _FILE.fullmatch(name), _REPOSITORY.findall(files.location)
        if layer is None:
            raise UserError(f"{files.directory} does not hold exactly one file layer<number>.sae.pt: give the file")
        if not place:
            raise UserError(
                f"k and the width are in the name of the repository (SAE-Res-<model>-W64K-L0_50), and {files.location} "
                "does not name it: keep the file in a folder of this name"
            )
        model, thousands, k = place[-1]
        axes = {"W_enc": "m d", "W_dec": "d m", "b_enc": "m", "b_dec": "d"}
        found, sizes = checked(torch_contents(files, name), name, axes, sizes={"m": 1024 * int(thousands)})
        if not 1 <= int(k) <= sizes["m"]:
            raise UserError(f"{files.location}: L0_{k} is no number of {sizes['m']} features")
        dictionary = Dictionary(
            W_enc=files.place("W_enc", found["W_enc"].T),
            b_enc=files.place("b_enc", found["b_enc"]),
            W_dec=files.place("W_dec", found["W_dec"].T),
            b_dec=files.place("b_dec", found["b_dec"]),
            activation=TopK(int(k)),
            centred=False,
        )
        address = f"blocks.{layer[1]}.resid_post"
        return Saved(dictionary, address, f"Qwen/{model}", format=cls.name, stated={"l0": float(k)})
