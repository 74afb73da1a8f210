"""What a SAELens config says about the model: the values that a dictionary reads and writes, and what else to know."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.formats.hook_names import HookValue, hook_value, module_value
from jax_interp.dictionaries.formats.saelens_config import SAELensConfig


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of a `Saved`."""

    address: str | None
    writes: str | None
    model: str | None
    normalized: str | None
    notes: tuple[str, ...]


def labels_of(config: SAELensConfig) -> Labels:
    """The labels that the metadata of a config give."""
    model = _text(config, "model_name")
    read, notes = _value(config, "hook_name", "hf_hook_name", model)
    write = HookValue(None)
    if config.is_transcoder:
        write, more = _value(config, "hook_name_out", "hf_hook_name_out", model)
        notes += more
    address, normalized = read.address, read.normalized
    for name, what in (("hook_head_index", "reads"), ("hook_head_index_out", "writes")):
        if (head := config.metadata.get(name)) is not None:
            notes += (
                f"it {what} head {head} of {address or 'its value'} alone, so it has no address of a whole value",
            )
            address = normalized = None
    if config.is_transcoder and write.address is None:  # without it, it would seem to write what it reads
        notes += (f"it reads {address or 'a value without an address'}; what it writes has no address here",)
        address = normalized = None
    return Labels(address, write.address, model, normalized, notes + _notes(config))


def _value(config: SAELensConfig, name: str, other: str, model: str | None) -> tuple[HookValue, tuple[str, ...]]:
    """The value that one of two entries names."""
    found = HookValue(None)
    notes: tuple[str, ...] = ()
    for entry in (name, other):
        hook = _text(config, entry)
        if hook is None or found.address is not None:
            continue
        found = _hook(hook, config, model)
        notes = () if found.address is not None else (*notes, f"{entry} is {hook!r}: {found.note}")
    return found, notes


def _hook(hook: str, config: SAELensConfig, model: str | None) -> HookValue:
    """The value of a hook: a TransformerLens name, or a module of a `transformers` model, whose output it is then."""
    of_module = config.metadata.get("model_class_name") == "AutoModelForCausalLM"
    if of_module and not hook.endswith((".input", ".output")):
        return module_value(hook, "output", model)
    return hook_value(hook, model)


def _notes(config: SAELensConfig) -> tuple[str, ...]:
    """What changes the numbers that the dictionary should be given."""
    notes, metadata = [], config.metadata
    if kwargs := metadata.get("model_from_pretrained_kwargs"):
        notes.append(f"it was trained on a TransformerLens model loaded with {_said(kwargs)}")
    bos = metadata.get("prepend_bos")
    if bos is not None:
        notes.append(f"it was trained on texts {'with' if bos else 'without'} a BOS token in front")
    if metadata.get("exclude_special_tokens"):
        notes.append("special tokens were left out of its training")
    if (part := metadata.get("seqpos_slice")) not in (None, [None], (None,)):
        notes.append(f"it was trained on the positions {part} of each text")
    return tuple(notes)


def _said(kwargs: Any) -> str:
    if isinstance(kwargs, dict):
        return ", ".join(f"{name}={value}" for name, value in kwargs.items())
    return repr(kwargs)


def _text(config: SAELensConfig, name: str) -> str | None:
    value = config.metadata.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"cfg.json has {name} {value!r}, which is not a name")
    return value or None
