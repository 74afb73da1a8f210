"""OpenAI's SAEs of GPT-2 small (Gao et al. 2024, arXiv:2406.04093): one torch file per layer.

    gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt

    z = activation((x - pre_bias) W_enc + latent_bias)          x̂ = z W_dec + pre_bias

The files of v5 have TopK. Their inputs are normalised: the mean of a vector is subtracted, and it is divided by its
standard deviation; the output gets both back. The folder names the value, and the file the layer.
"""

from __future__ import annotations

import re
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.activations.topk import TopK
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import names_in, only_torch_file, torch_contents, torch_file
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.forms.normalised import Normalised
from jax_interp.dictionaries.storage import Saved

_AXES = {"pre_bias": "d", "latent_bias": "m", "encoder.weight": "m d"}
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_PLACE = re.compile(
    r"(resid_delta_attn|resid_delta_mlp|resid_post_attn|resid_post_mlp|mlp_post_act)\w*/(?:autoencoders/)?(\d+)\.pt"
)
_VALUES = {
    "resid_delta_attn": "attn_out",
    "resid_delta_mlp": "mlp_out",
    "resid_post_attn": "resid_mid",
    "resid_post_mlp": "resid_post",
    "mlp_post_act": "mlp.post",
}
NOT_CENTRED = (
    "it was trained on GPT-2 as it is stored; with TransformerLens, load the model with center_writing_weights=False"
)


@FORMATS.register
class OpenAI(Format):
    """SAEs with a pre-bias: ReLU, or TopK on normalised inputs."""

    name = "openai-gpt2"
    title = "OpenAI GPT-2"
    hub_files = ("{path}",)

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return {"pre_bias", "latent_bias"} <= names_in(files, torch_file(files))

    @classmethod
    def read(cls, files: Files) -> Saved:
        name = only_torch_file(files)
        entries = torch_contents(files, name)
        entries = {key: value for key, value in entries.items() if key not in _STATISTICS}
        activation = _activation(entries, name)
        found, sizes = checked(entries, name, _AXES, {"decoder.weight": "d m"})
        if activation.k is not None and not activation.k <= sizes["m"]:
            raise UserError(f"{name}: k is {activation.k}, of {sizes['m']} features")
        tied = "decoder.weight" not in found
        dictionary = Dictionary(
            W_enc=files.place("W_enc", found["encoder.weight"].T),
            b_enc=files.place("b_enc", found["latent_bias"]),
            W_dec=files.place("W_dec", found["encoder.weight"] if tied else found["decoder.weight"].T),
            b_dec=files.place("b_dec", found["pre_bias"]),
            activation=activation,
        )
        form = dictionary if activation.k is None else Normalised(dictionary, "layer_norm")
        place = _PLACE.findall(files.location if files.selected else f"{files.location}/{name}")
        if not place:
            note = "the path does not name the value and the layer (resid_post_mlp_v5_32k/autoencoders/8.pt)"
            return Saved(form, None, "gpt2", format=cls.name, notes=(note, NOT_CENTRED))
        value, layer = place[-1]
        return Saved(form, f"blocks.{layer}.{_VALUES[value]}", "gpt2", format=cls.name, notes=(NOT_CENTRED,))


def _activation(entries: dict[str, Any], name: str) -> ReLU | TopK:
    """Take the activation out of the entries."""
    kind, settings = entries.pop("activation", "ReLU"), entries.pop("activation_state_dict", {})
    if kind == "ReLU" and settings == {}:
        return ReLU()
    if kind != "TopK" or not isinstance(settings, dict):
        raise UserError(f"{name}: the activation is {kind!r} with {settings!r}; known are ReLU and TopK")
    k, after = settings.get("k"), settings.get("postact_fn")
    if type(k) is not int or k < 1 or settings.keys() - {"k", "postact_fn"}:
        raise UserError(f"{name}: the settings of TopK are {settings!r}; they should be k and postact_fn")
    if after != "ReLU":
        raise UserError(f"{name}: {after!r} follows TopK; known is ReLU")
    return TopK(k)
