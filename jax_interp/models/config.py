"""What a decoder is made of: sizes and choices, in one frozen and hashable record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from jax_interp.errors import UserError

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
Norm = Literal["layernorm", "rmsnorm"]
Positions = Literal["learned", "rotary"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed to reach past the context that a model was trained on.

    `linear` divides every frequency by `factor` (Chen et al. 2023). `llama3` divides those of wavelengths above
    `original_n_ctx / low_freq` positions, keeps those below `original_n_ctx / high_freq`, and goes over smoothly in
    between (Llama 3.1).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq: float = 1.0
    high_freq: float = 4.0
    original_n_ctx: int = 8192

    def __post_init__(self):
        _one_of("rope scaling", self.kind, ("linear", "llama3"))
        if self.factor <= 0:
            raise UserError(f"rope scaling factor={self.factor} must be positive")
        if self.kind == "llama3" and not 0 < self.low_freq < self.high_freq:
            raise UserError(
                f"llama3 rope scaling needs 0 < low_freq < high_freq, got {self.low_freq}, {self.high_freq}"
            )


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021), pairing feature i of a head with feature i + dim/2 ("half-split")."""

    base: float = 10_000.0
    dim: int | None = None
    """How many features of a head are rotated, from the first; None: all."""
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class Config:
    """A decoder-only transformer. Every number is checked on construction: `UserError` says which and why."""

    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int
    vocab_size: int
    n_ctx: int
    """The longest sequence; a hard limit with learned positions, the trained length with rotary ones."""
    n_kv_heads: int = 0
    """Key/value heads, each shared by n_heads / n_kv_heads query heads; 0: as many as query heads."""
    d_head: int = 0
    """Features per head; 0: d_model / n_heads."""
    act: Activation = "silu"
    gated_mlp: bool = True
    """post = act(gate x) * (up x), instead of act(up x)."""
    norm: Norm = "rmsnorm"
    norm_eps: float = 1e-5
    positions: Positions = "rotary"
    rope: Rope = field(default_factory=Rope)
    """Read where positions are rotary."""
    qkv_bias: bool = False
    out_bias: bool = False
    """Whether attention's output projection has a bias."""
    mlp_bias: bool = False
    tied_embedding: bool = True
    """Whether the unembedding is the embedding's transpose."""

    def __post_init__(self):
        if not self.n_kv_heads:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_mlp", "vocab_size", "n_ctx"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.d_head:
            if self.d_model % self.n_heads:
                raise UserError(f"d_model={self.d_model} is no multiple of n_heads={self.n_heads}: give d_head")
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"n_heads={self.n_heads} is no multiple of n_kv_heads={self.n_kv_heads}")
        _one_of("act", self.act, get_args(Activation))
        _one_of("norm", self.norm, get_args(Norm))
        _one_of("positions", self.positions, get_args(Positions))
        if self.norm_eps <= 0:
            raise UserError(f"norm_eps={self.norm_eps} must be positive")
        if self.positions == "rotary":
            dim = self.rotary_dim
            if dim % 2 or not 0 < dim <= self.d_head:
                raise UserError(f"rotary dim={dim} must be even, and at most d_head={self.d_head}")

    @property
    def rotary_dim(self) -> int:
        """How many features of a head are rotated."""
        return self.d_head if self.rope.dim is None else self.rope.dim


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is not known: choose from {', '.join(choices)}")
