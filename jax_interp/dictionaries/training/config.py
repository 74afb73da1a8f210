"""What is trained, where, for what and how long: the config of a dictionary.

    DictionaryConfig("blocks.2.resid_post", n_features=4096, activation=TopK(32), steps=800)
    DictionaryConfig("blocks.2.ln2.normalized", writes="blocks.2.mlp_out", ...)                  a transcoder
    DictionaryConfig(("blocks.0.resid_post", "blocks.1.resid_post"), ...)                        a crosscoder
    CrossLayerConfig(("blocks.0.ln2.normalized", ...), writes=("blocks.0.mlp_out", ...))       a cross-layer transcoder

`variants.py` has the published recipes, by name.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import ACTIVATIONS, Activation, TopK
from jax_interp.dictionaries.losses import TERMS, AuxK, Reconstruction, Term
from jax_interp.dictionaries.losses.term import check_terms


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam with warm-up, constant rate, linear decay to 0. `eps` is Gao et al.'s: gradients of a loss normalised by
    the variance are small.

    `clip`: the largest global norm of a gradient, counted as publications do, beside a reconstruction in SSE: where it
    is the fraction of variance unexplained, V times less is, a gradient being V ≈ d times as small."""

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

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or self.warmup < 0 or not 0 <= self.decay <= 1:
            raise UserError(
                f"learning_rate={self.learning_rate}, warmup={self.warmup}, decay={self.decay}: above 0, at least 0, "
                "and from 0 to 1"
            )
        for name in ("clip", "offset_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}={value}: above 0, or None")


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Dead latents begin anew on inputs that are reconstructed badly (resampling.py), every `every` steps until `until`
    of the run is over; never where `every` is later than that. None: four times in a run, as published, and in a short
    one less often, every 50 steps. A latent is dead for this when it has not fired for half of that."""

    every: int | None = None
    until: float = 0.6
    encoder_scale: float = 0.2

    def __post_init__(self) -> None:
        if (self.every is not None and self.every < 2) or not 0 <= self.until <= 1 or not self.encoder_scale > 0:
            raise UserError(
                f"every={self.every}, until={self.until}, encoder_scale={self.encoder_scale}: at least 2 steps, from 0 "
                "to 1, and above 0"
            )

    def period(self, steps: int) -> int:
        """After how many steps it is due, again and again, in a run of `steps`."""
        return max(round(self.until * steps) // 4, 50) if self.every is None else self.every


@reads_older_files(renamed={"few": "sparse_gradient_sizes"})
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
    sparse_gradient_sizes: tuple[int, ...] = (64, 256)
    """ReLU, JumpReLU and Gated on a CPU: where a batch has no more than so many latents a row on average that take part
    (gradient.py), a step computes with those alone, by the least of the numbers that suffices. It changes the last bits
    and the time. (): never. What is trained inside the model (end_to_end.py, joint.py) always computes with all."""
    buffer: int = 65_536
    """Rows shuffled among each other."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_features < 1:
            raise UserError(f"n_features={self.n_features}: at least 1")
        k = self.activation.k
        if k is not None and not 0 < k <= self.n_features:
            raise UserError(f"k={k} latents of n_features={self.n_features}: k must be from 1 to n_features")
        for name in ("steps", "buffer", "dead_after"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: at least 1")
        if self.decoder not in ("unit", "free"):
            raise UserError(f"decoder={self.decoder!r}: 'unit' or 'free'")
        if any(n < 1 for n in self.sparse_gradient_sizes):
            raise UserError(
                f"sparse_gradient_sizes={self.sparse_gradient_sizes}: latents a row, each at least 1; () for never"
            )
        if not self.loss:
            raise UserError("loss is empty: give at least Reconstruction()")
        if not self.reads or not self.targets:
            raise UserError("address and writes name no value: give at least one each, or None for writes")
        if self.skip and self.writes is None:
            raise UserError("skip with writes=None would copy the input to the output: give the value to write")
        one_value = self.writes is None and len(self.reads) == 1 and self.decoder == "unit"
        if not self.activation.uses_encoder and not one_value:
            raise UserError(
                f"{type(self.activation).__name__} encodes by the decoder, whose rows must have norm 1: it is for "
                'SAEs of one value, writes=None and decoder="unit"'
            )
        check_terms(self.activation, self.loss)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.address,) if isinstance(self.address, str) else tuple(self.address)

    @property
    def targets(self) -> tuple[str, ...]:
        """The addresses written."""
        if self.writes is None:
            return self.reads
        return (self.writes,) if isinstance(self.writes, str) else tuple(self.writes)


@reads_older_files(renamed={"few": "sparse_gradient_sizes"})
@dataclasses.dataclass(frozen=True)
class CrossLayerConfig(DictionaryConfig):
    """`address` and `writes` in the order of the layers, one target for each source. Without `writes` a weakly causal
    crosscoder; a strictly causal one reads all values but the last and writes all but the first.

    `window`: how many targets a source writes, its own first; None: all from its own on. `decoder="unit"` holds a
    feature's rows to all its targets, taken together, at norm 1; free rows ask for a choice, or a penalty, weighted by
    their norms.
    """

    address: tuple[str, ...] = ("blocks.0.resid_post", "blocks.1.resid_post")
    activation: Activation = dataclasses.field(default_factory=lambda: TopK(weighted=True))
    decoder: Literal["unit", "free"] = "free"
    centred: bool = False
    sparse_gradient_sizes: tuple[int, ...] = ()
    window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.reads) != len(self.targets):
            raise UserError(
                f"{len(self.reads)} values are read and {len(self.targets)} written: a cross-layer dictionary has one "
                "target for each source, which it and the sources before it write"
            )
        if self.window is not None and self.window < 1:
            raise UserError(f"window={self.window}: at least 1, the source's own target")
        if self.centred or self.resampling is not None:
            raise UserError("a cross-layer dictionary is neither centred nor resampled: leave both out")
        if self.sparse_gradient_sizes:
            raise UserError("sparse_gradient_sizes: a cross-layer dictionary computes with all latents; leave it out")
        if not self.activation.cross_layer:
            known = ", ".join(kind.__name__ for kind in ACTIVATIONS if kind.cross_layer)
            raise UserError(f"a cross-layer dictionary takes {known}, not {type(self.activation).__name__}")
        for term in self.loss:
            if term.cross_layer is None:
                known = ", ".join(kind.__name__ for kind in TERMS if kind.cross_layer)
                raise UserError(f"a cross-layer dictionary is trained with {known}, not {type(term).__name__}")
