"""The transcoders of Qwen 3 by mwhanna: a circuit-tracer set with the settings of its training beside it.

    layer_0.safetensors, ..., config.yaml, wandb-config.yaml (one repository writes wanb-config.yaml)

ReLU transcoders of the MLPs. They read the input of the MLP, which is the output of the norm with its weight. The
repository of the 14B model has no `config.yaml`; its name tells the model.
"""

from __future__ import annotations

import re
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.storage import Saved

CONFIG = "config.yaml"


def read_config(files: Files) -> dict[str, Any]:
    """What `config.yaml` says, or what the repository tells."""
    config = files.yaml(CONFIG) if CONFIG in files else {"model_name": _model(files.location)}
    return {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"} | config


def wandb_config(files: Files) -> str | None:
    """The name of the file with the settings of training beside these transcoders. One repository misspells it."""
    return next((name for name in ("wandb-config.yaml", "wanb-config.yaml") if name in files), None)


def check_sizes(files: Files, saved: Saved) -> None:
    """Raise UserError if the settings of training state other sizes than the tensors have."""
    settings = files.yaml(str(wandb_config(files)))
    stated = {name: _value(settings.get(name)) for name in ("d_model", "d_feature")}
    dictionary: Any = saved.dictionary
    one = dictionary.sources[0] if isinstance(dictionary, CrossLayer) else dictionary
    for name, size in zip(stated, one.W_enc.shape):
        if stated[name] not in (None, size):
            raise UserError(f"{wandb_config(files)} says {name} = {stated[name]}, and the tensors have {size}")


def _model(location: str) -> str:
    found = re.findall(r"qwen3-(\d+(?:\.\d+)?)b", location)
    if not found:
        raise UserError(f"there is no {CONFIG}, and the path {location} does not name the model (qwen3-14b-...)")
    return f"Qwen/Qwen3-{found[-1]}B"


def _value(entry: Any) -> Any:
    return entry.get("value") if isinstance(entry, dict) else entry
