"""The `cfg.json` of SAELens, of version 6 and of the flat layout before it, as one description of a dictionary.

Entries that change what a dictionary computes are checked one by one, and unknown ones are refused. Entries about
training are left in `Saved.config`. A config of an earlier version is a dump of all settings of a run, so its other
entries are not known by name, and are ignored as SAELens ignores them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jax_interp.core.errors import UserError

TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
ARCHITECTURES = (
    "standard", "gated", "jumprelu", "topk", "abstopk", *BATCH_TOPK, "matching_pursuit", "temporal", *TRANSCODERS,
)  # fmt: skip
NORMS = (
    "none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening",
    "constant_scalar_rescale",
)  # fmt: skip

_EVERY = ("architecture", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations")
_EVERY += ("reshape_activations", "metadata")
_TOPK = ("k", "rescale_acts_by_decoder_norm")
_OF_ARCHITECTURE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("topk", "abstopk", *BATCH_TOPK), _TOPK),
    **dict.fromkeys(TRANSCODERS, ("d_out",)),
    "matching_pursuit": ("residual_threshold", "max_iterations", "stop_on_duplicate_support"),
    "temporal": (
        "n_heads", "n_attn_layers", "bottleneck_factor", "sae_diff_type", "kval_topk", "tied_weights",
        "activation_normalization_factor",
    ),
}  # fmt: skip
_OF_TRAINING = {
    "decoder_init_norm", "l1_coefficient", "lp_norm", "l1_warm_up_steps", "use_sparse_activations",
    "aux_loss_coefficient", "topk_threshold_lr", "matryoshka_widths", "use_matryoshka_aux_loss",
    "jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode", "l0_coefficient",
    "l0_warm_up_steps", "pre_act_loss_coefficient", "jumprelu_tanh_scale", "jumprelu_ste_to_input", "target_l0",
}  # fmt: skip
"""Settings of training. They do not change what a dictionary computes."""
METADATA = {
    "model_name", "hook_name", "model_class_name", "hook_head_index", "model_from_pretrained_kwargs", "prepend_bos",
    "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice", "dataset_path", "sae_lens_version",
    "sae_lens_training_version", "hook_name_out", "hook_head_index_out", "hf_hook_name", "hf_hook_name_out",
}  # fmt: skip
"""Entries about the model and the data. Before version 6 they are beside the others."""
_RENAMED = {
    "hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn",
}  # fmt: skip
_NONE: Any = object()


@dataclasses.dataclass(frozen=True)
class SAELensConfig:
    """What a `cfg.json` says about a dictionary."""

    architecture: str
    d_in: int
    d_sae: int
    centred: bool
    """`apply_b_dec_to_input`: whether b_dec is subtracted from the input."""
    normalize: str
    """One of `NORMS`."""
    settings: Mapping[str, Any]
    """The entries of the file, those of earlier versions renamed."""
    metadata: Mapping[str, Any]
    scales_latents: bool = False
    """Whether the tensor `scaling_factor` of an earlier version multiplies the latents before they are decoded."""

    @property
    def is_transcoder(self) -> bool:
        return self.architecture in TRANSCODERS

    def get(self, name: str, kind: type, default: Any = _NONE) -> Any:
        """An entry. Raises UserError if it is not of this type. None is allowed only if it is the default."""
        value = self.settings.get(name, default)
        if value is _NONE:
            raise UserError(f"cfg.json lacks {name}, which {self.architecture} needs")
        types = (float, int) if kind is float else (kind,)
        if type(value) not in types and not (value is None and default is None):
            raise UserError(f"cfg.json has {name} {value!r}, which is not {kind.__name__}")
        return kind(value) if kind is float and value is not None else value


def read_config(given: Mapping[str, Any], overrides: Mapping[str, Any]) -> SAELensConfig:
    """The description of a dictionary.

    Args:
      given: the entries of `cfg.json`.
      overrides: entries that a release states beside the file. They replace those of the file.

    Raises:
      UserError: an entry is missing, unknown, or has a value that is not known here.
    """
    cfg = dict(given)
    nested = _mapping(cfg.get("metadata", {}), "metadata")
    version = cfg.get("sae_lens_version") or nested.get("sae_lens_version")
    current = version is not None and _major(version) >= 6
    if current:
        in_metadata = {name: value for name, value in overrides.items() if name in METADATA}
        cfg |= {name: value for name, value in overrides.items() if name not in METADATA}
        cfg["metadata"] = nested = {**nested, **in_metadata}
        _refuse_unknown(cfg)
    else:
        cfg = _from_earlier(cfg | dict(overrides))
        nested = nested | {name: value for name, value in cfg.items() if name in METADATA}
    return _checked(cfg, nested)


def _checked(cfg: dict[str, Any], metadata: Mapping[str, Any]) -> SAELensConfig:
    architecture = _one_of(cfg, "architecture", ARCHITECTURES)
    normalize = _one_of(cfg, "normalize_activations", NORMS, "none")
    _one_of(cfg, "reshape_activations", ("none", "hook_z"), "none")
    if normalize == "constant_scalar_rescale" and architecture != "temporal":
        raise UserError(f"cfg.json has normalize_activations {normalize!r}, which only temporal dictionaries have")
    draft = SAELensConfig(architecture, 0, 0, True, normalize, cfg, metadata)
    centred = draft.get("apply_b_dec_to_input", bool, not draft.is_transcoder)
    if centred and draft.is_transcoder:
        raise UserError("cfg.json has apply_b_dec_to_input true, but a transcoder subtracts no bias from its input")
    d_in, d_sae = draft.get("d_in", int), draft.get("d_sae", int)
    if d_in < 1 or d_sae < 1:
        raise UserError(f"cfg.json has d_in {d_in} and d_sae {d_sae}, which are not both above 0")
    scales = draft.get("finetuning_scaling_factor", bool, False)
    return dataclasses.replace(draft, d_in=d_in, d_sae=d_sae, centred=centred, scales_latents=scales)


def _refuse_unknown(cfg: Mapping[str, Any]) -> None:
    architecture = _one_of(cfg, "architecture", ARCHITECTURES)
    known = {*_EVERY, *_OF_TRAINING, *METADATA, *_OF_ARCHITECTURE.get(architecture, ())}
    if unknown := sorted(cfg.keys() - known):
        raise UserError(
            f"cfg.json has {unknown[0]!r}, which is not known for {architecture}: it may change what the dictionary "
            "computes. Entries about the model and the data are in metadata"
        )


def _from_earlier(given: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config before version 6 under the names of today."""
    cfg = {_RENAMED.get(name, name): value for name, value in given.items()}
    cfg.setdefault("architecture", "standard")
    activation = cfg.get("activation_fn", "relu")
    k = _mapping(cfg.get("activation_fn_kwargs") or {}, "activation_fn_kwargs").get("k")
    if activation == "topk" and k is not None:
        cfg |= {"architecture": "topk", "k": k}
    elif activation != "relu":
        raise UserError(f"cfg.json has activation_fn {activation!r}; known are 'relu', and 'topk' with a k")
    normalize = cfg.get("normalize_activations")
    named = {True: "expected_average_only_in", False: "none", None: "none"}
    cfg["normalize_activations"] = normalize if isinstance(normalize, str) else named.get(normalize, normalize)
    if cfg.get("is_transcoder"):
        raise UserError(
            "cfg.json has is_transcoder true: a transcoder of a version that SAELens does not read any more"
        )
    return cfg


def _major(version: Any) -> int:
    found = re.match(r"(\d+)\.", version) if isinstance(version, str) else None
    if found is None:
        raise UserError(f"cfg.json has sae_lens_version {version!r}, which is not a version")
    return int(found[1])


def _one_of(cfg: Mapping[str, Any], name: str, known: tuple[str, ...], default: str | None = None) -> str:
    value = cfg.get(name, default)
    if value not in known:
        raise UserError(f"cfg.json has {name} {value!r}; known are {', '.join(known)}")
    return value


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"cfg.json has {name} {value!r}, which is not an object")
    return value
