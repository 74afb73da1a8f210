"""What is trained, where, for what and how long: the config of a dictionary.

    DictionaryConfig("blocks.2.resid_post", n_features=4096, activation=TopK(32), steps=800)
    DictionaryConfig("blocks.2.ln2.normalized", writes="blocks.2.mlp_out", ...)                  a transcoder
    DictionaryConfig(("blocks.0.resid_post", "blocks.1.resid_post"), ...)                        a crosscoder

`variants.py` has the published recipes, by name.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from jax_interp.dictionaries.activations import Activation, TopK
from jax_interp.dictionaries.losses import AuxK, Reconstruction, Term
from jax_interp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam with warm-up, constant rate, linear decay to 0. `eps` is Gao et al.'s: gradients of a loss normalised by
    the variance are small. `clip`: the largest global norm of a gradient."""

    learning_rate: float = 1e-3  # 2e-4 / sqrt(n_features / 2**14) is usual for runs of 10⁸ tokens and more
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 6.25e-10
    warmup: int = 50  # steps
    decay: float = 0.2  # last part of the run
    clip: float | None = None
    offset_rate: float | None = None
    """How many times faster biases and the activation's own parameters (thresholds, gates) learn than matrices. None:
    √d where every positive pre-activation is on (ReLU, Gated, JumpReLU), 1 where few are chosen. Inputs have norm √d,
    so offsets that decide what is on are √d times as large as for inputs of norm 1, for which the usual rates are."""


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Dead latents begin anew on inputs that are reconstructed badly (resampling.py), every `every` steps until `until`
    of the run is over. A latent is dead for this when it has not fired for `every` / 2 steps."""

    every: int = 2500
    until: float = 0.6
    encoder_scale: float = 0.2


@dataclasses.dataclass(frozen=True)
class DictionaryConfig:
    """Amounts of data are in tokens; one row of activations is one token.

    The defaults are for a small model on a laptop: steps · (tokens in a batch) rows are trained on.
    """

    address: str | tuple[str, ...] = "blocks.2.resid_post"
    """What is read: one value, or several side by side."""
    writes: str | tuple[str, ...] | None = None
    """What is written; None: what is read."""
    n_features: int = 4096
    activation: Activation = dataclasses.field(default_factory=TopK)
    loss: tuple[Term, ...] = dataclasses.field(default_factory=lambda: (Reconstruction(), AuxK()))
    decoder: Literal["unit", "free"] = "unit"
    """unit: decoder rows (at each written value) are held at norm 1; free: the loss weighs latents by their norms."""
    centred: bool = True
    """Whether b_dec is subtracted from the input. Never so where another value is written than read."""
    skip: bool = False
    """A linear map from what is read to what is written, beside the features."""
    dead_after: int = 200_000
    """Tokens without firing; Gao et al. and most libraries use 10 million."""
    resampling: Resampling | None = None
    steps: int = 800
    optimizer: Adam = dataclasses.field(default_factory=Adam)
    matmul: Literal["float32", "bfloat16"] | None = None
    """What products of matrices multiply in; they add up in float32, and weights, moments and everything else stay
    float32. None: the device's default (a TPU's is bfloat16). CPUs multiply in float32 whatever is asked."""
    few: tuple[int, ...] = (64, 256)
    """ReLU, JumpReLU and Gated on a CPU: where a batch has no more than so many latents a row on average that take part
    (gradient.py), a step computes with those alone, by the least of the numbers that suffices. It changes the last bits
    and the time. (): never. What is trained inside the model (end_to_end.py, joint.py) always computes with all."""
    buffer: int = 65_536
    """Rows shuffled among each other."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_features < 1:
            raise UserError(f"n_features={self.n_features}: at least 1")
        k = getattr(self.activation, "k", 1)
        if not 0 < k <= self.n_features:
            raise UserError(f"k={k} latents of n_features={self.n_features}: k must be from 1 to n_features")
        if not 0 <= self.optimizer.decay <= 1 or self.optimizer.warmup < 0 or self.steps < 1:
            raise UserError(
                f"steps={self.steps}, warmup={self.optimizer.warmup}, decay={self.optimizer.decay}: "
                "at least 1, 0 and 0 to 1"
            )
        if any(n < 1 for n in self.few):
            raise UserError(f"few={self.few}: numbers of latents a row, each at least 1; () for never")
        if not self.loss:
            raise UserError("loss is empty: give at least Reconstruction()")
        if not self.reads or not self.targets:
            raise UserError("address and writes name no value: give at least one each, or None for writes")
        if self.skip and self.writes is None:
            raise UserError("skip with writes=None would copy the input to the output: give the value to write")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.address,) if isinstance(self.address, str) else tuple(self.address)

    @property
    def targets(self) -> tuple[str, ...]:
        """The addresses written."""
        if self.writes is None:
            return self.reads
        return (self.writes,) if isinstance(self.writes, str) else tuple(self.writes)
