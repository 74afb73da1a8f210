"""What a decoder is made of: sizes and choices, in one frozen and hashable record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from jax_interp.core.errors import UserError

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "solu"]
Norm = Literal["layernorm", "rmsnorm", "none"]
NormPlaces = Literal["before", "after", "around"]
Parallel = Literal["no", "one norm", "two norms"]
Positions = Literal["learned", "rotary", "sinusoidal", "alibi", "none"]
QKNorm = Literal["no", "head", "all heads"]
RopeKind = Literal["linear", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed to reach past the context that a model was trained on.

    `linear` divides every frequency by `factor` (Chen et al. 2023). `llama3` divides those of wavelengths above
    `original_n_ctx / low_freq` positions, keeps those below `original_n_ctx / high_freq`, and goes over smoothly in
    between (Llama 3.1, "NTK by parts"). `yarn` (Peng et al. 2023) does the same with a ramp that is linear in the
    index of the pair, between those that turn `beta_fast` and `beta_slow` times in the original context, and
    multiplies queries and keys by `attention_factor`.
    """

    kind: RopeKind
    factor: float
    low_freq: float = 1.0
    high_freq: float = 4.0
    original_n_ctx: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    """Whether yarn's ramp begins and ends at whole pairs."""

    def __post_init__(self):
        _one_of("rope scaling", self.kind, get_args(RopeKind))
        if self.factor <= 0:
            raise UserError(f"rope scaling factor={self.factor} must be positive")
        if self.kind == "llama3" and not 0 < self.low_freq < self.high_freq:
            raise UserError(
                f"llama3 rope scaling needs 0 < low_freq < high_freq, got {self.low_freq}, {self.high_freq}"
            )
        if self.kind == "yarn" and not 0 < self.beta_slow < self.beta_fast:
            raise UserError(f"yarn needs 0 < beta_slow < beta_fast, got {self.beta_slow}, {self.beta_fast}")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021)."""

    base: float = 10_000.0
    dim: int | None = None
    """How many features of a head are rotated, from the first; None: all."""
    scaling: RopeScaling | None = None
    adjacent: bool = False
    """Whether feature 2i is paired with 2i + 1 (GPT-J), instead of i with i + dim/2 (GPT-NeoX, Llama)."""


@dataclass(frozen=True)
class Config:
    """A decoder-only transformer. Every number is checked on construction: `UserError` says which and why."""

    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int
    """Neurons of a block's MLP, of each expert where there are experts; 0: blocks of attention only."""
    vocab_size: int
    n_ctx: int
    """The longest sequence; a hard limit with learned positions, the trained length with others."""
    n_kv_heads: int = 0
    """Key/value heads, each shared by n_heads / n_kv_heads query heads; 0: as many as query heads."""
    d_head: int = 0
    """Features per head; 0: d_model / n_heads."""

    act: Activation = "silu"
    gated_mlp: bool = True
    """post = act(gate x) * (up x), instead of act(up x)."""
    mlp_norm: bool = False
    """Whether the neurons pass a LayerNorm of their own (SoLU models)."""
    n_experts: int = 0
    """Experts of a mixture, gated MLPs of which each token is given to some; 0: one MLP for all tokens."""
    experts_per_token: int = 2

    norm: Norm = "rmsnorm"
    norm_eps: float = 1e-5
    norm_affine: bool = True
    """Whether norms have weights (and LayerNorm biases); folded ones have none."""
    norm_offset: bool = False
    """Whether RMSNorm's weight is stored less one (Gemma)."""
    norm_places: NormPlaces = "before"
    """Norms stand before attention and MLP, after them (on what they add to the stream, OLMo 2), or both (Gemma 2)."""
    parallel: Parallel = "no"
    """Whether the MLP reads the stream beside attention and not after it, through attention's norm or its own."""
    qk_norm: QKNorm = "no"
    """An RMSNorm of queries and keys: of each head (Qwen 3, Gemma 3), or of all heads as one vector (OLMo 2)."""

    positions: Positions = "rotary"
    rope: Rope = field(default_factory=Rope)
    """Read where positions are rotary."""
    rope_local: Rope | None = None
    """Another rotation for layers of sliding attention; None: the same."""
    position_offset: int = 0
    """How many rows of the learned positions stand before the first one that is used (OPT)."""

    window: int = 0
    """Where attention slides, a token sees itself and the window - 1 before it."""
    sliding: tuple[bool, ...] = ()
    """For each layer whether its attention slides; (): none does."""
    attn_scale: float = 0.0
    """What scores are multiplied by; 0: 1 / sqrt(d_head)."""
    attn_softcap: float = 0.0
    """Scores are cap * tanh(score / cap); 0: as they are."""
    logit_softcap: float = 0.0
    """The same of the logits."""
    logit_scale: float = 1.0
    embed_scale: float = 1.0
    """What embeddings are multiplied by, rounded to the model's dtype first (Gemma)."""

    qkv_bias: bool = False
    out_bias: bool = False
    """Whether attention's output projection has a bias."""
    mlp_bias: bool = False
    unembed_bias: bool = False
    tied_embedding: bool = True
    """Whether the unembedding is the embedding's transpose."""

    def __post_init__(self):
        if not self.n_kv_heads:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "vocab_size", "n_ctx"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("d_mlp", "n_experts", "window", "position_offset", "attn_softcap", "logit_softcap", "attn_scale"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative")
        if not self.d_head:
            if self.d_model % self.n_heads:
                raise UserError(f"d_model={self.d_model} is no multiple of n_heads={self.n_heads}: give d_head")
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"n_heads={self.n_heads} is no multiple of n_kv_heads={self.n_kv_heads}")
        for name, kind in (
            ("act", Activation),
            ("norm", Norm),
            ("norm_places", NormPlaces),
            ("parallel", Parallel),
            ("positions", Positions),
            ("qk_norm", QKNorm),
        ):
            _one_of(name, getattr(self, name), get_args(kind))
        if self.norm_eps <= 0:
            raise UserError(f"norm_eps={self.norm_eps} must be positive")
        if self.positions == "rotary":
            for rope in (self.rope, self.rope_local or self.rope):
                dim = self.d_head if rope.dim is None else rope.dim
                if dim % 2 or not 0 < dim <= self.d_head:
                    raise UserError(f"rotary dim={dim} must be even, and at most d_head={self.d_head}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.sliding and len(self.sliding) != self.n_layers:
            raise UserError(f"sliding says it of {len(self.sliding)} layers, n_layers={self.n_layers}")
        if any(self.sliding) and not self.window:
            raise UserError("layers of sliding attention need window, the number of positions that a token sees")
        if self.n_experts:
            if not 0 < self.experts_per_token <= self.n_experts:
                raise UserError(f"experts_per_token={self.experts_per_token} must be from 1 to {self.n_experts}")
            if not (self.gated_mlp and self.d_mlp) or self.mlp_bias or self.mlp_norm:
                raise UserError(
                    "experts are gated MLPs without biases and norms: gated_mlp, d_mlp, no mlp_bias, mlp_norm"
                )
        if self.norm_offset and self.norm != "rmsnorm":
            raise UserError("norm_offset is of RMSNorm's weight: norm='rmsnorm'")
        if self.parallel != "no" and (self.norm_places != "before" or not self.d_mlp):
            raise UserError("parallel blocks have an MLP, and norms before it: norm_places='before'")
        if self.position_offset and self.positions != "learned":
            raise UserError("position_offset is of learned positions")
        if self.unembed_bias and self.tied_embedding:
            raise UserError("an unembedding that is the embedding's transpose has no bias: tied_embedding=False")

    @property
    def slides(self) -> tuple[bool, ...]:
        """For each layer whether its attention slides."""
        return self.sliding or (False,) * self.n_layers

    def first(self, n_layers: int) -> Config:
        """The config of the first layers alone. Raises `UserError` where there are not as many."""
        if not 1 <= n_layers <= self.n_layers:
            raise UserError(f"first_n_layers={n_layers}: the model has {self.n_layers}")
        return self.of_layers(range(n_layers))

    def of_layers(self, layers: Sequence[int]) -> Config:
        """The config of these layers in this order: what it says of a layer goes along with it."""
        return replace(
            self, n_layers=len(layers), sliding=tuple(self.slides[i] for i in layers) if self.sliding else ()
        )


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is not known: choose from {', '.join(choices)}")
