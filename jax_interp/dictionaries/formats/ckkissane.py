"""Crosscoders between two models by ckkissane, and of those who train with the same code: `cfg.json`, `cc_weights.pt`.

    ckkissane/crosscoder-gemma-2-2b-model-diff/blocks.14.hook_resid_pre/{cfg.json, cc_weights.pt}

    f = ReLU(sum over models of x_model W_enc[model] + b_enc)          x̂_model = f W_dec[:, model] + b_dec[model]

Each model's values are multiplied by sqrt(d) over the mean norm of its values, which the training code estimates and
does not store. The dictionary that is read here therefore expects scaled values, see its notes.
"""

from __future__ import annotations

import warnings

from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import hook_named, text, torch_contents
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_CONFIG, _FILE = "cfg.json", "cc_weights.pt"
_AXES = {"W_enc": "model d m", "W_dec": "m model d", "b_enc": "m", "b_dec": "model d"}
PAIR = ("model_0", "model_1")
"""The addresses of the two values of `diffing.ModelPair`."""
SCALES = (
    "the values of each model were multiplied by sqrt(d) / mean norm before. The two factors are not in the files: "
    "measure them, and use fold_input_scale(dictionary, jnp.repeat(jnp.asarray(factors), d))"
)


@FORMATS.register
class Ckkissane(Format):
    """A crosscoder of one value of two models."""

    name = "ckkissane"
    title = "ckkissane crosscoder"
    repositories = ("ckkissane/crosscoder-*",)
    hub_files = ("{path}/cfg.json", "{path}/cc_weights.pt")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return files.selected in (None, _CONFIG, _FILE) and _FILE in files

    @classmethod
    def read(cls, files: Files) -> Saved:
        config = files.json(_CONFIG) if _CONFIG in files else {}
        found, sizes = checked(torch_contents(files, _FILE), _FILE, _AXES, sizes={"model": 2})
        d, m = sizes["d"], sizes["m"]
        dictionary = Dictionary(
            W_enc=files.place("W_enc", found["W_enc"].reshape(2 * d, m)),
            b_enc=files.place("b_enc", found["b_enc"]),
            W_dec=files.place("W_dec", found["W_dec"].reshape(m, 2 * d)),
            b_dec=files.place("b_dec", found["b_dec"].reshape(2 * d)),
            activation=ReLU(),
            centred=False,
            write_sites=2,
        )
        model = text(config, "model_name", _CONFIG)
        value = hook_named(config, "hook_point", model, _CONFIG)
        what = f"it reads {value.address}" if value.address else str(value.note)
        warnings.warn(f"{files.directory}: {SCALES}", stacklevel=2)  # without them, latents and FVU are wrong
        notes = (SCALES, f"model_0 and model_1 are the base and the fine-tuned model; {what}")
        return Saved(dictionary, PAIR, model, config or None, format=cls.name, notes=notes)
