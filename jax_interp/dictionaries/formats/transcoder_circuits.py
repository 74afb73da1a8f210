"""transcoder_circuits (Dunefsky et al. 2024, arXiv:2406.11944): a torch file or pickle with a config object.

    pchlenski/gpt2-transcoders/final_sparse_autoencoder_gpt2-small_blocks.8.ln2.hook_normalized_24576.pt

The file holds {"cfg": an object, "state_dict": tensors}. The object is read as data, and its class is never imported. A
transcoder subtracts `b_dec` from its input and adds `b_dec_out` to its output. An SAE has `b_dec` in both places.
"""

from __future__ import annotations

from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.core.inert_pickle import Inert
from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.formats.e2e_sae import PROCESSED
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.folding import fold_input_shift
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import hook_named, only_torch_file, text, torch_contents, torch_file
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_AXES = {"W_enc": "d m", "b_enc": "m", "W_dec": "m d_out", "b_dec": "d"}
_CLASSES = ("sae_training.config.LanguageModelSAERunnerConfig", "sae_training.config.RunnerConfig")


@FORMATS.register
class TranscoderCircuits(Format):
    """Transcoders and SAEs of GPT-2."""

    name = "transcoder_circuits"
    title = "transcoder_circuits"
    repositories = ("pchlenski/gpt2-transcoders",)
    hub_files = ("{path}",)

    @classmethod
    def recognise(cls, files: Files) -> bool:
        name = torch_file(files)
        if name is None:
            return False
        return torch_contents(files, name, keep_unknown=True, verify=False).keys() == {"cfg", "state_dict"}

    @classmethod
    def read(cls, files: Files) -> Saved:
        name = only_torch_file(files)
        entries = torch_contents(files, name, keep_unknown=True)
        config, tensors = _settings(entries.get("cfg"), name), entries.get("state_dict")
        if not isinstance(tensors, dict):
            raise UserError(f"{name} has no 'state_dict'; it has {', '.join(sorted(entries))}")
        is_transcoder = config.get("is_transcoder", False)
        if type(is_transcoder) is not bool:
            raise UserError(f"{name}: cfg.is_transcoder is {is_transcoder!r}, not true or false")
        axes = {**_AXES, "b_dec_out": "d_out"} if is_transcoder else {**_AXES, "W_dec": "m d"}
        found, _ = checked(tensors, name, axes)
        dictionary = Dictionary(
            W_enc=files.place("W_enc", found["W_enc"]),
            b_enc=files.place("b_enc", found["b_enc"]),
            W_dec=files.place("W_dec", found["W_dec"]),
            b_dec=files.place("b_dec", found["b_dec_out" if is_transcoder else "b_dec"]),
            activation=ReLU(),
            centred=not is_transcoder,
        )
        if is_transcoder:
            dictionary = fold_input_shift(dictionary, files.place("b_dec", found["b_dec"]))
        return _labelled(dictionary, config, is_transcoder)


def _labelled(dictionary: Dictionary, config: dict[str, Any], is_transcoder: bool) -> Saved:
    model = text(config, "model_name", "cfg")
    model = "gpt2" if model == "gpt2-small" else model
    read = hook_named(config, "hook_point", model, "cfg")
    written = hook_named(config, "out_hook_point", model, "cfg") if is_transcoder else read
    notes = [value.note for value in (read, written) if value.note]
    notes += [PROCESSED] if model == "gpt2" else []
    return Saved(
        dictionary,
        read.address,
        model,
        {name: value for name, value in config.items() if isinstance(value, (str, int, float, bool, type(None)))},
        writes=written.address if is_transcoder else None,
        format=TranscoderCircuits.name,
        notes=tuple(dict.fromkeys(notes)),
        normalized=read.normalized,
    )


def _settings(config: Any, name: str) -> dict[str, Any]:
    """The attributes of the config object."""
    if isinstance(config, dict):
        return config
    if not isinstance(config, Inert) or not isinstance(config.state, dict):
        raise UserError(f"{name} has no config object under 'cfg'")
    if config.name not in _CLASSES and not config.name.endswith("RunnerConfig"):
        raise UserError(f"{name}: 'cfg' is an object of the class {config.name[:200]}, which is not known")
    return config.state
