"""SAEs of attention heads by Connor Kissane and Rob Krzyzanowski: `<name>.pt` and `<name>_cfg.json`.

ckkissane/attn-saes-gpt2-small-all-layers/gpt2-small_L5_Hcat_z_lr1.20e-03_..._v9.pt

f = ReLU((z - b_dec) W_enc + b_enc),   ẑ = f W_dec + b_dec,   where z are the outputs of all heads side by side
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.hook_names import hook_value
from jax_interp.dictionaries.formats.tensor_shapes import checked, one_dtype
from jax_interp.dictionaries.formats.torch_contents import torch_contents
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_END = "_cfg.json"
_AXES = {"W_enc": "d m", "b_enc": "m", "W_dec": "m d", "b_dec": "d"}


@FORMATS.register
class ConnorRob(Format):
    """A ReLU SAE of the flattened `attn.z`, with its config beside it."""

    name = "connor_rob_hook_z"
    title = "attention SAEs of Kissane and Krzyzanowski"
    repositories = ("ckkissane/attn-saes-*",)
    hub_files = ("{path}", f"{{stem}}{_END}")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        stem = _stem(files)
        return stem is not None and {"act_name", "act_size", "dict_size"} <= files.json(stem + _END).keys()

    @classmethod
    def read(cls, files: Files) -> Saved:
        stem = _stem(files)
        if stem is None:
            raise UserError(f"{files.directory} has no .pt file with a config beside it, or several: name the file")
        config, where = files.json(stem + _END), f"{stem}.pt"
        sizes = {}
        for axis, name in (("d", "act_size"), ("m", "dict_size")):
            sizes[axis] = config.get(name)
            if type(sizes[axis]) is not int:
                raise UserError(f"{stem}{_END} has {name} {sizes[axis]!r}, which is not a whole number")
        tensors, _ = checked(torch_contents(files, where), where, _AXES, sizes=sizes)
        weights: dict[str, Any] = {
            name: files.place(name, array) for name, array in one_dtype(tensors, "W_enc").items()
        }
        dictionary = Dictionary(**weights, activation=ReLU(), centred=True)
        model = config.get("model_name")
        value = hook_value(str(config.get("act_name")), model)
        notes = () if value.address is not None else (f"act_name is {config.get('act_name')!r}: {value.note}",)
        return Saved(dictionary, value.address, model, config, format=cls.name, notes=notes)


def _stem(files: Files) -> str | None:
    """The name of the `.pt` file without its ending, if there is exactly one with a config beside it."""
    names = [PurePosixPath(name).stem for name in files.names() if name.endswith(".pt")]
    if files.selected is not None and files.selected.endswith(_END):
        names = [files.selected.removesuffix(_END)]
    names = [name for name in names if f"{name}.pt" in files and f"{name}{_END}" in files]
    return names[0] if len(names) == 1 else None
