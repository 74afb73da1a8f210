"""The values of other libraries' models, as addresses of this package.

    hook_value("model.layers.5.output")                                  blocks.5.resid_post
    hook_value("blocks.5.attn.hook_z")                                   blocks.5.attn.z
    hook_value("model.layers.5.self_attn.o_proj.input")                  blocks.5.attn.z
    module_value("h.3.mlp")                                              blocks.3.mlp_out
    module_value("layers.5.mlp", model="google/gemma-2-2b")              no address: a norm follows the MLP

The same module path means different values in different families: `post_attention_layernorm` is the norm before the MLP
of a Llama, and the norm after attention of a Gemma 2. The name of the model decides. If it does not, the path is
translated only if all families with this path agree. What has no address here gets none, and a note that says why.

The paths come from the tables of stored tensors of the families (`models/hf/`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Literal

from jax_interp.core.errors import UserError
from jax_interp.models.config import Config
from jax_interp.models.hf.family import Family, families
from jax_interp.surgery.address import Address

Side = Literal["input", "output"]
_Layout = dict[tuple[str, Side], "HookValue"]
"""(path of a module with {} for the layer, side) -> the value, with {} for the layer."""

_PREFIX = re.compile(
    r"^(?:(?:model\.)?language_model\.(?:model\.)?|model\.decoder\.|model\.|transformer\.|gpt_neox\.|decoder\.)?"
)
_MODELS = {
    "gemma3_text": r"gemma-?3-",
    "gemma2": r"gemma-?2-",
    "gemma": r"gemma-(1\.1-)?\d+b",
    "olmo2": r"olmo-2",
    "gpt_neox": r"pythia|gpt-neox",
    "gpt_neo": r"gpt-neo-|tinystories",
    "gptj": r"gpt-j",
    "gpt2": r"gpt-?2",
    "opt": r"^opt-",
    "mixtral": r"mixtral",
    "mistral": r"mistral",
    "qwen3": r"qwen3-\d+(\.\d+)?b(?!-a\d)",
    "qwen2": r"(qwen-?1\.5|qwen-?2(\.5)?|distill-qwen)(?!.*-a\d)",
    "phi3": r"phi-3",
    "phi": r"phi-(1|1_5|1\.5|2)$",
    "stablelm": r"stablelm",
    "llama": r"llama|smollm",
}
"""Patterns of the names of models, without the owner and in lower case, by `model_type`."""

_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_SCOPES = {
    "attn": ("q", "k", "v", "z", "result", "pattern", "attn_scores", "rot_q", "rot_k"),
    "mlp": ("pre", "pre_linear", "mid", "post"),
    **dict.fromkeys(("ln1", "ln2", "ln1_post", "ln2_post"), ("scale", "normalized")),
}
_IN_BLOCK = {*_STREAM, *(f"{scope}.{name}" for scope, names in _SCOPES.items() for name in names)}
_OUTSIDE = {"embed", "pos_embed", "ln_final.scale", "ln_final.normalized"}


@dataclasses.dataclass(frozen=True)
class HookValue:
    """A value of another library's model.

    Attributes:
      address: the address of the value. None: this package has no name for exactly this value.
      normalized: where the value is the whole output of a norm, the address of its normalized value. The whole output
        is this value times the weight of the norm, plus its bias (`norm_weight.py`).
      note: why there is no address.
    """

    address: str | None
    normalized: str | None = None
    note: str | None = None


def hook_value(name: str, model: str | None = None) -> HookValue:
    """The value that a hook names.

    Args:
      name: a TransformerLens name ("blocks.5.hook_resid_post", "blocks.5.mlp.hook_in"), or a module path with
        ".input" or ".output" ("model.layers.5.self_attn.o_proj.input").
      model: the name of the model, such as "google/gemma-3-1b-pt". None: not known.
    """
    path, _, side = name.rpartition(".")
    if side in ("input", "output") and not path.startswith("blocks."):
        return module_value(path, side, model)  # type: ignore[arg-type]
    return _lens_value(name, model)


def module_value(path: str, side: Side = "output", model: str | None = None) -> HookValue:
    """The input or output of a module of `transformers`.

    Args:
      path: the path of the module, with or without the prefix of the whole model: "model.layers.5", "h.3.mlp".
      side: "output", or "input": the first argument of the module.
      model: the name of the model, such as "google/gemma-3-1b-pt". None: not known.
    """
    prefix = _PREFIX.match(path)[0]  # type: ignore[index]
    short = path.removeprefix(prefix)
    found = re.fullmatch(r"(layers|h)\.(\d+)((?:\.\w+)*)", short)
    layer = "" if found is None else found[2]
    inner = short if found is None else f"{found[1]}.{{}}{found[3]}"
    return _the_one(_values(inner, side, prefix, model), layer, f"the {side} of {path!r}", model)


def model_type_of(model: str | None) -> str | None:
    """The `model_type` that the name of a model tells ("gemma2" for "google/gemma-2-9b-it"). None: it tells none."""
    short = (model or "").rstrip("/").rsplit("/", 1)[-1].lower()
    return next((kind for kind, pattern in _MODELS.items() if re.search(pattern, short)), None)


def address_of(value: HookValue, name: str) -> str:
    """The address of a value. Raises UserError if it has none."""
    if value.address is None:
        raise UserError(f"{name!r} has no address here: {value.note}")
    return value.address


def _candidates(prefix: str, model: str | None) -> list[_Layout]:
    """The layouts of the families that can be meant."""
    kind, layouts = model_type_of(model), _layouts()
    if kind in layouts:
        return [layouts[kind]]
    return [layout for name, layout in layouts.items() if prefix in ("", "decoder.", _prefixes()[name])] or list(
        layouts.values()
    )


def _values(inner: str, side: Side, prefix: str, model: str | None) -> set[HookValue]:
    """What a module path means in the families that can be meant."""
    return {layout[inner, side] for layout in _candidates(prefix, model) if (inner, side) in layout}


def _the_one(values: set[HookValue], layer: str, asked: str, model: str | None) -> HookValue:
    asked += "" if model is None else f" of {model}"
    if not values:
        return HookValue(None, note=f"no value here is {asked}")
    if len(values) > 1:
        each = sorted({value.address or value.normalized or "no address" for value in values})
        note = f"{asked} depends on the family of the model, which is not known: {', '.join(each)}"
        return HookValue(None, note=note.replace("{}", layer))
    (value,) = values
    fill = lambda text: None if text is None else text.replace("{}", layer)
    return HookValue(fill(value.address), fill(value.normalized), fill(value.note))


def _lens_value(name: str, model: str | None) -> HookValue:
    """The value of a TransformerLens name."""
    try:
        address = Address.parse(name)
    except UserError:
        return HookValue(None, note=f"{name!r} is not the name of a value")
    layer, inner = address.layers, address.name
    if layer is None and inner in _OUTSIDE:
        return HookValue(str(address))
    if layer is None or not layer.isdigit():
        return HookValue(None, note=f"no value here is {name!r}")
    if inner == "mlp_in":
        note = f"{name!r} is the stream before the norm in TransformerLens, and its output in Gemma Scope 2's configs"
        return HookValue(None, note=note)
    if inner in ("mlp.in", "mlp.out"):
        side: Side = "input" if inner == "mlp.in" else "output"
        values = _values("layers.{}.mlp", side, "", model) | _values("h.{}.mlp", side, "", model)
        return _the_one(values, layer, repr(name), model)
    if inner in ("ln1.out", "ln2.out"):
        return _weighted(f"blocks.{layer}.{inner.removesuffix('.out')}")
    if inner not in _IN_BLOCK:
        return HookValue(None, note=f"no value here is {name!r}")
    return HookValue(str(address))


def _weighted(norm: str) -> HookValue:
    normalized = f"{norm}.normalized"
    note = f"it is the whole output of a norm: {normalized} times the norm's weight, which has no name here"
    return HookValue(None, normalized, note)


@functools.cache
def _prefixes() -> dict[str, str]:
    return {family.model_type: family.prefix for family in families()}


@functools.cache
def _layouts() -> dict[str, _Layout]:
    """The layout of each family whose modules are those of `transformers`."""
    return {family.model_type: _layout(family) for family in families() if family.model_type in _MODELS}


def _layout(family: Family) -> _Layout:
    config = Config(n_layers=1, d_model=4, n_heads=2, d_mlp=8, vocab_size=8, n_ctx=8)
    specs = family.tensors(config)
    one = {
        ours.removesuffix(".weight").removeprefix("blocks.*."): spec.name.removesuffix(".weight")
        for ours, spec in specs.items()
        if ours.endswith(".weight") and spec.columns is None and not spec.experts
    }
    block = one["attn.o"].partition("{}")[0] + "{}"
    after_attn, after_mlp = "ln1_post" in one, "ln2_post" in one
    gated = "blocks.*.mlp.gate.weight" in specs
    here = lambda name: HookValue(f"blocks.{{}}.{name}")
    before_norm = HookValue(None, note="a norm follows, and the value before this norm has no name here")
    attn_out = before_norm if after_attn else here("attn_out")
    mlp_out = before_norm if after_mlp else here("mlp_out")
    found: _Layout = {
        (block, "input"): here("resid_pre"),
        (block, "output"): here("resid_post"),
    }
    for norm in ("ln1", "ln2"):
        if norm in one:
            found[one[norm], "output"] = _weighted(f"blocks.{{}}.{norm}")
        if after := one.get(f"{norm}_post"):
            found[after, "output"] = here("attn_out" if norm == "ln1" else "mlp_out")
    found |= {(one["attn.o"], "input"): here("attn.z"), (one["attn.o"], "output"): attn_out}
    for parent in _parents(one["attn.o"], block):
        found[parent, "output"] = attn_out
    for name in ("attn.q", "attn.k", "attn.v"):
        if name in one:
            found[one[name], "output"] = here(name)
    for layer, value in (("mlp.up", "mlp.pre_linear" if gated else "mlp.pre"), ("mlp.gate", "mlp.pre")):
        if layer in one:
            found |= {(one[layer], "output"): here(value), (one[layer], "input"): _mlp_input(family.model_type, one)}
    if "mlp.down" in one:
        found |= {(one["mlp.down"], "input"): here("mlp.post"), (one["mlp.down"], "output"): mlp_out}
        for parent in _parents(one["mlp.down"], block):
            found |= {(parent, "output"): mlp_out, (parent, "input"): _mlp_input(family.model_type, one)}
    scaled = HookValue(None, note="Gemma scales its embeddings; whether this module does it depends on the version")
    found[one["embed"], "output"] = scaled if family.model_type.startswith("gemma") else HookValue("embed")
    return found


def _parents(name: str, block: str) -> list[str]:
    """The modules between a block and one of its layers."""
    parts = name.removeprefix(f"{block}.").split(".")[:-1]
    return [".".join([block, *parts[: i + 1]]) for i in range(len(parts))]


def _mlp_input(model_type: str, one: dict[str, str]) -> HookValue:
    if model_type == "stablelm":
        return HookValue(None, note="it depends on use_parallel_residual of the model")
    if "ln2" in one:
        return _weighted("blocks.{}.ln2")
    return _weighted("blocks.{}.ln1") if "ln1" in one else HookValue("blocks.{}.resid_mid")
