"""`Config`: the sizes and choices that define a decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.core.rotary import Rope

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "solu"]
NormKind = Literal["layernorm", "rmsnorm", "none"]
NormPlaces = Literal["before", "after", "around"]
Parallel = Literal["no", "one norm", "two norms"]
Positions = Literal["learned", "rotary", "sinusoidal", "alibi", "none"]
QKNorm = Literal["no", "head", "all heads"]


class Derived(int):
    """A size that follows from others. `dataclasses.replace` derives it again, also after it was given a new base."""


def _derived_sizes(values: dict[str, Any]) -> dict[str, Any]:
    """The JSON values of a config, in which sizes that follow from others are 0."""
    n_heads, d_head = values.get("n_heads"), values.get("d_head")
    if "n_kv_heads" in values and values["n_kv_heads"] == n_heads:
        values = values | {"n_kv_heads": 0}
    if isinstance(n_heads, int) and isinstance(d_head, int) and n_heads * d_head == values.get("d_model"):
        values = values | {"d_head": 0}
    return values


@reads_older_files(rewritten=_derived_sizes)
@dataclass(frozen=True)
class Config:
    """The sizes and choices of a decoder-only transformer. It is frozen and hashable.

    `dataclasses.replace` makes a variant. Sizes that were not given (`n_kv_heads`, `d_head`) follow the new sizes.

    Raises:
      UserError: a value is out of range, or two values exclude each other. The message names them.

    Example:
        config = Config(n_layers=4, d_model=256, n_heads=8, d_mlp=1024, vocab_size=4096, n_ctx=512)
        model = init(config, jax.random.key(0))
    """

    n_layers: int
    """Number of blocks."""
    d_model: int
    """Width of the residual stream."""
    n_heads: int
    """Query heads of each attention layer."""
    d_mlp: int
    """Neurons of the MLP of a block, or of each expert in a mixture. 0: blocks have attention only."""
    vocab_size: int
    """Number of token ids."""
    n_ctx: int
    """The longest sequence. A hard limit with learned positions, otherwise the length used in training."""
    n_kv_heads: int = 0
    """Key/value heads. Each is shared by n_heads / n_kv_heads query heads. 0: the same number as n_heads."""
    d_head: int = 0
    """Features per head. 0: d_model / n_heads."""

    act: Activation = "silu"
    """Activation of the MLP."""
    gated_mlp: bool = True
    """The MLP computes act(gate x) * (up x) instead of act(up x)."""
    mlp_norm: bool = False
    """The MLP applies a LayerNorm to the neurons before its output projection (SoLU models)."""
    n_experts: int = 0
    """The number of experts in a mixture of experts. Each expert is a gated MLP. 0: one MLP for all tokens."""
    experts_per_token: int = 2
    """Experts that each token is routed to."""

    norm: NormKind = "rmsnorm"
    """The kind of norm."""
    norm_eps: float = 1e-5
    """Added to the mean square, or the variance, before the square root."""
    norm_affine: bool = True
    """Norms have weights, and LayerNorm has a bias. Norms that are folded into other weights have neither."""
    norm_offset: bool = False
    """The weight of an RMSNorm is stored minus one (Gemma)."""
    norm_places: NormPlaces = "before"
    """The places of the norms. "before": on the inputs of attention and MLP. "after": on their outputs (OLMo 2).
    "around": on both (Gemma 2)."""
    parallel: Parallel = "no"
    """The input of the MLP. "no": the stream after attention. "one norm": the same stream and norm as attention.
    "two norms": the same stream as attention, with a separate norm."""
    qk_norm: QKNorm = "no"
    """An RMSNorm of queries and keys. "head": of each head (Qwen 3, Gemma 3). "all heads": of all heads as one vector
    (OLMo 2)."""

    positions: Positions = "rotary"
    """How positions enter the model."""
    rope: Rope = field(default_factory=Rope)
    """The rotation, if positions are rotary."""
    rope_local: Rope | None = None
    """The rotation of layers with sliding attention. None: the same as `rope`."""
    position_offset: int = 0
    """The number of unused rows at the start of the learned positions (2 in OPT)."""

    window: int = 0
    """In layers with sliding attention a token attends to itself and the window - 1 tokens before it."""
    sliding: tuple[bool, ...] = ()
    """For each layer, whether it has sliding attention. Empty: no layer has."""
    attn_scale: float = 0.0
    """The factor of attention scores. 0: 1 / sqrt(d_head)."""
    attn_softcap: float = 0.0
    """Scores become cap * tanh(score / cap). 0: no cap."""
    logit_softcap: float = 0.0
    """Logits become cap * tanh(logit / cap). 0: no cap."""
    logit_scale: float = 1.0
    """The factor of the logits."""
    embed_scale: float = 1.0
    """The factor of the embeddings. It is first rounded to the dtype of the model (Gemma)."""

    qkv_bias: bool = False
    """The projections to queries, keys and values have biases."""
    out_bias: bool = False
    """The output projection of attention has a bias."""
    mlp_bias: bool = False
    """The projections of the MLP have biases."""
    unembed_bias: bool = False
    """The unembedding has a bias."""
    tied_embedding: bool = True
    """The unembedding is the transpose of the embedding."""

    def __post_init__(self):
        if not self.n_kv_heads or isinstance(self.n_kv_heads, Derived):
            object.__setattr__(self, "n_kv_heads", Derived(self.n_heads))
        for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "vocab_size", "n_ctx"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("d_mlp", "n_experts", "window", "position_offset", "attn_softcap", "logit_softcap", "attn_scale"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative")
        if not self.d_head or isinstance(self.d_head, Derived):
            if self.d_model % self.n_heads:
                raise UserError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: give d_head")
            object.__setattr__(self, "d_head", Derived(self.d_model // self.n_heads))
        if self.d_head < 1:
            raise UserError(f"d_head={self.d_head} must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")
        for name, kind in (
            ("act", Activation),
            ("norm", NormKind),
            ("norm_places", NormPlaces),
            ("parallel", Parallel),
            ("positions", Positions),
            ("qk_norm", QKNorm),
        ):
            _one_of(name, getattr(self, name), get_args(kind))
        if not 0 < self.norm_eps < math.inf:
            raise UserError(f"norm_eps={self.norm_eps} must be positive and finite")
        if self.positions == "rotary":
            for rope in (self.rope, self.rope_local or self.rope):
                dim = self.d_head if rope.dim is None else rope.dim
                if dim % 2 or not 0 < dim <= self.d_head:
                    raise UserError(f"rotary dim={dim} must be even, and at most d_head={self.d_head}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.sliding and len(self.sliding) != self.n_layers:
            raise UserError(
                f"sliding has {len(self.sliding)} entries, one is needed for each of n_layers={self.n_layers}"
            )
        if any(self.sliding) and not self.window:
            raise UserError("layers of sliding attention need window: the number of positions that a token sees")
        if self.n_experts:
            if not 0 < self.experts_per_token <= self.n_experts:
                raise UserError(f"experts_per_token={self.experts_per_token} must be from 1 to {self.n_experts}")
            if not (self.gated_mlp and self.d_mlp) or self.mlp_bias or self.mlp_norm:
                raise UserError(
                    "experts are gated MLPs without biases and norms: they need gated_mlp=True, d_mlp of at least 1, "
                    "mlp_bias=False and mlp_norm=False"
                )
        if self.norm_offset and self.norm != "rmsnorm":
            raise UserError("norm_offset needs norm='rmsnorm'")
        if self.parallel != "no" and (self.norm_places != "before" or not self.d_mlp):
            raise UserError("parallel blocks need an MLP (d_mlp of at least 1) and norm_places='before'")
        if self.position_offset and self.positions != "learned":
            raise UserError("position_offset needs positions='learned'")
        if self.unembed_bias and self.tied_embedding:
            raise UserError("unembed_bias needs tied_embedding=False: a tied unembedding has no bias")

    @property
    def slides(self) -> tuple[bool, ...]:
        """For each layer, whether it has sliding attention."""
        return self.sliding or (False,) * self.n_layers

    def first(self, n_layers: int) -> Config:
        """The config of the first `n_layers` layers. Raises `UserError` if the model has fewer layers."""
        if not 1 <= n_layers <= self.n_layers:
            raise UserError(f"first_n_layers={n_layers}: the model has {self.n_layers}")
        return self.of_layers(range(n_layers))

    def of_layers(self, layers: Sequence[int]) -> Config:
        """The config of a model with these layers, in this order. Each layer keeps its kind of attention."""
        return replace(
            self, n_layers=len(layers), sliding=tuple(self.slides[i] for i in layers) if self.sliding else ()
        )


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is not known: choose from {', '.join(choices)}")
