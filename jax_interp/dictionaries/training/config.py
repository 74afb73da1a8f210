"""The configs of dictionary training.

    DictionaryConfig("blocks.2.resid_post", n_features=4096, activation=TopK(32), steps=800)
    DictionaryConfig("blocks.2.ln2.normalized", writes="blocks.2.mlp_out", ...)                  a transcoder
    DictionaryConfig(("blocks.0.resid_post", "blocks.1.resid_post"), ...)                        a crosscoder
    CrossLayerConfig(("blocks.0.ln2.normalized", ...), writes=("blocks.0.mlp_out", ...))       a cross-layer transcoder
    SAEConfig.of(variants.april("blocks.2.resid_post"))                            an SAE in joint training
    EndToEndSAEConfig.of(variants.relu("blocks.2.resid_post"))                     an SAE in end-to-end training

Each class has exactly the fields that its trainer uses. `variants.py` has configs of published dictionaries, by name.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, Literal, Self

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import ACTIVATIONS, Activation, TopK
from jax_interp.dictionaries.losses import TERMS, AuxK, Reconstruction, Term
from jax_interp.dictionaries.losses.term import check_terms
from jax_interp.surgery import canonical

Decoder = Literal["unit", "free"]
MOST_TOKENS = 2**30
"""The counters of tokens since a latent fired stop here."""


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam with a learning rate that rises, stays constant, and decays linearly to 0."""

    learning_rate: float = 1e-3  # 2e-4 / sqrt(n_features / 2**14) is usual for runs of 10⁸ tokens and more
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 6.25e-10  # from Gao et al.: a loss that is divided by the variance has small gradients
    warmup: int = 50
    """The number of steps in which the rate rises."""
    decay: float = 0.2
    """The fraction of the run, at its end, in which the rate falls to 0."""
    clip: float | None = None
    """The largest global norm of a gradient. As in publications, it refers to a reconstruction loss in SSE. If the
    reconstruction term is divided by the variance V ≈ d, the limit is divided by V too. None: no clipping."""
    offset_rate: float | None = None
    """The learning rate of biases and activation parameters (thresholds, gates), relative to that of matrices. None: √d
    for ReLU, Gated and JumpReLU, and 1 if the activation has a k. The reason: inputs have norm √d here, so offsets are
    √d times as large as for inputs of norm 1, and usual learning rates are for inputs of norm 1."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or self.warmup < 0 or not 0 <= self.decay <= 1:
            raise UserError(
                f"learning_rate={self.learning_rate}, warmup={self.warmup}, decay={self.decay}: the learning rate must "
                "be above 0, the warm-up at least 0, and the decay from 0 to 1"
            )
        for name in ("clip", "offset_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}={value}: give a number above 0, or None")


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Dead latents are re-initialised from inputs with a large error (resampling.py)."""

    every: int | None = None
    """The number of steps between resamplings. None: four resamplings per run, as published, but at least 50 steps
    apart. Here a latent is dead if it has not fired for half of this time."""
    until: float = 0.6
    """The fraction of the run after which there is no more resampling."""
    encoder_scale: float = 0.2
    """The norm of a new encoder column, relative to the mean norm of the columns of living latents."""

    def __post_init__(self) -> None:
        if (self.every is not None and self.every < 2) or not 0 <= self.until <= 1 or not self.encoder_scale > 0:
            raise UserError(
                f"every={self.every}, until={self.until}, encoder_scale={self.encoder_scale}: every must be at least 2 "
                "steps, until from 0 to 1, and encoder_scale above 0"
            )

    def period(self, steps: int) -> int:
        """The number of steps between resamplings, in a run of `steps`."""
        return max(round(self.until * steps) // 4, 50) if self.every is None else self.every


@dataclasses.dataclass(frozen=True)
class CommonConfig:
    """The fields that all trainers of dictionaries use. Amounts of data are in tokens. One token gives one row."""

    address: str | tuple[str, ...] = "blocks.2.resid_post"
    """The address that is read, or several. Several values are side by side in the last axis."""
    n_features: int = 4096
    activation: Activation = dataclasses.field(default_factory=TopK)
    loss: tuple[Term, ...] = dataclasses.field(default_factory=lambda: (Reconstruction(), AuxK()))
    decoder: Decoder = "unit"
    """unit: decoder rows are held at norm 1, for each written value. free: rows have any norm, and the loss should
    weight latents by it."""
    dead_after: int = 200_000
    """A latent is dead if it has not fired for this many tokens. Gao et al. and most libraries use 10 million."""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", canonical(self.address))
        check_at_least_1(self, "n_features", "dead_after")
        if self.dead_after > MOST_TOKENS:
            raise UserError(
                f"dead_after={self.dead_after}: latents are counted up to {MOST_TOKENS:,} tokens; give less"
            )
        k = self.activation.k
        if k is not None and not 0 < k <= self.n_features:
            raise UserError(f"k={k} latents of n_features={self.n_features}: k must be from 1 to n_features")
        if self.decoder not in ("unit", "free"):
            raise UserError(f"decoder={self.decoder!r}: give 'unit' or 'free'")
        if not self.loss:
            raise UserError("loss is empty: give at least Reconstruction()")
        if not self.reads:
            raise UserError("address names no value: give at least one")
        if not (self.decoder == "unit" and len(self.reads) == 1):
            check_encoder(self.activation)
        check_terms(self.activation, self.loss)

    def with_fields(self, **fields: Any) -> Self:
        """Return the config with some fields replaced. Raises UserError if it does not have such a field."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise UserError(f"{type(self).__name__} has no {name!r}{hint} It has {', '.join(known)}")
        return dataclasses.replace(self, **fields)

    @property
    def reads(self) -> tuple[str, ...]:
        """The addresses that are read."""
        return (self.address,) if isinstance(self.address, str) else tuple(self.address)


@dataclasses.dataclass(frozen=True)
class HarvestedConfig(CommonConfig):
    """The fields of trainers that learn from a stream of shuffled activations.

    A run uses `steps` · (tokens per batch) rows. The defaults are for a small model on a laptop.
    """

    writes: str | tuple[str, ...] | None = None
    """The address that is written, or several. None: the same as `address`."""
    skip: bool = False
    """Whether there is a linear map from the input to the output, in addition to the features."""
    steps: int = 800
    optimizer: Adam = dataclasses.field(default_factory=Adam)
    matmul: Literal["float32", "bfloat16"] | None = None
    """The dtype in which matrix products multiply. Sums, weights, moments and everything else are float32. None: the
    default of the device (bfloat16 on a TPU). CPUs always multiply in float32."""
    buffer: int = 65_536
    """The number of rows in the shuffle buffer."""
    skip_first: int = 0
    """The number of positions at the start of every sequence that are left out: of training, of the scale of the values
    and of the variance in the loss. In many models the first position is a sink of attention: its activation is tens of
    times as long as all others, and then it determines the scale and most of the loss."""
    max_norm: float | None = None
    """Rows in which a value is longer than this many times its median norm are left out in the same way, wherever they
    stand. 10 leaves out sinks. None: no row is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "writes", canonical(self.writes))
        check_at_least_1(self, "steps", "buffer")
        check_skip_first(self.skip_first)
        if self.max_norm is not None and not self.max_norm > 1:
            raise UserError(f"max_norm={self.max_norm}: give a number of medians above 1, or None")
        if not self.targets:
            raise UserError("writes names no value: give at least one, or None for the value that is read")
        if self.skip and self.writes is None:
            raise UserError(
                "a skip with writes=None would copy the input to the output: give writes, or leave out the skip"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """The addresses that are written."""
        if self.writes is None:
            return self.reads
        return (self.writes,) if isinstance(self.writes, str) else tuple(self.writes)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that are harvested: those that are read, and then those that are written if `writes` is set."""
        return self.reads if self.writes is None else self.reads + self.targets


def _older(fields: dict[str, Any]) -> dict[str, Any]:
    """Earlier versions had no `skip_first` and no `max_norm`, and kept the user's spelling of addresses."""
    fields = {"skip_first": 0, "max_norm": None} | fields
    return fields | {name: canonical(fields[name]) for name in {"address", "writes"} & fields.keys()}


def _older_dictionary(fields: dict[str, Any]) -> dict[str, Any]:
    """Earlier versions wrote a `centred` that had no effect if `writes` was set."""
    no_effect = "centred" in fields and fields.get("writes") is not None
    return _older(fields) | ({"centred": False} if no_effect else {})


@reads_older_files(renamed={"few": "sparse_gradient_sizes"}, rewritten=_older_dictionary)
@dataclasses.dataclass(frozen=True)
class DictionaryConfig(HarvestedConfig):
    """A dictionary of one code: an SAE, a transcoder or a crosscoder (`train_dictionary`, `train_sweep`)."""

    centred: bool = None  # type: ignore[assignment]  (always a bool after __post_init__)
    """Whether b_dec is subtracted from the input. None: True, or False if `writes` is set, because
    b_dec then belongs to another value."""
    resampling: Resampling | None = None
    sparse_gradient_sizes: tuple[int, ...] = (64, 256)
    """For ReLU, JumpReLU and Gated on a CPU: sizes of lists of latents, in latents per row on average. If the latents
    that take part in a batch fit into a list, the step computes only with them (gradient.py). The smallest size that
    fits is used. This changes the time and the last bits of the result. (): a step always computes with all latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centred is None:
            object.__setattr__(self, "centred", self.writes is None)
        if self.centred and self.writes is not None:
            raise UserError(
                "centred=True would subtract b_dec, which belongs to the value that is written, from another "
                "value: give centred=False (--dictionary.no-centred), or leave out writes"
            )
        if any(n < 1 for n in self.sparse_gradient_sizes):
            raise UserError(
                f"sparse_gradient_sizes={self.sparse_gradient_sizes}: give latents per row, each at least 1, "
                "or () for never"
            )
        if self.writes is not None:
            check_encoder(self.activation)

    def with_fields(self, **fields: Any) -> Self:
        if fields.get("writes") is not None:
            fields = {"centred": None} | fields
        return super().with_fields(**fields)


@reads_older_files(
    removed={"few": [], "sparse_gradient_sizes": [], "centred": False, "resampling": None},
    rewritten=_older,
)
@dataclasses.dataclass(frozen=True)
class CrossLayerConfig(HarvestedConfig):
    """A cross-layer dictionary (`train_cross_layer`). `address` and `writes` are in the order of the layers, with one
    target for each source.

    With `writes=None` it is a weakly causal crosscoder. A strictly causal crosscoder reads all values but the last and
    writes all but the first. With `decoder="unit"`, the decoder row of a feature to all its targets together has norm
    1. With `decoder="free"`, use an activation or a penalty that is weighted by decoder norms.
    """

    address: tuple[str, ...] = ("blocks.0.resid_post", "blocks.1.resid_post")
    activation: Activation = dataclasses.field(default_factory=lambda: TopK(weighted=True))
    decoder: Decoder = "free"
    window: int | None = None
    """The number of targets that a source writes, starting with its own. None: its own and all later ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.reads) != len(self.targets):
            raise UserError(
                f"{len(self.reads)} values are read and {len(self.targets)} written: a cross-layer dictionary needs "
                "one target for each source"
            )
        if self.window is not None and self.window < 1:
            raise UserError(f"window={self.window}: must be at least 1, because a source writes its own target")
        if not self.activation.cross_layer:
            known = ", ".join(kind.__name__ for kind in ACTIVATIONS if kind.cross_layer)
            raise UserError(f"a cross-layer dictionary can use {known}, not {type(self.activation).__name__}")
        for term in self.loss:
            if term.cross_layer is None:
                known = ", ".join(kind.__name__ for kind in TERMS if kind.cross_layer)
                raise UserError(f"a cross-layer dictionary can use the loss terms {known}, not {type(term).__name__}")


@dataclasses.dataclass(frozen=True)
class SAEConfig(CommonConfig):
    """An SAE of one value in joint training (`train_joint`)."""

    address: str = "blocks.2.resid_post"
    """The address that is read and written."""
    centred: bool = True
    """Whether b_dec is subtracted from the input."""

    @classmethod
    def of(cls, config: DictionaryConfig) -> Self:
        """Convert the config of a variant: `SAEConfig.of(variants.april("blocks.2.resid_post"))`.

        The optimizer of the variant is dropped if the trainer has one optimizer for all dictionaries.

        Raises:
          UserError: `config` is not an SAE of one value, or it sets a field that this class does not have.
        """
        if len(config.reads) != 1 or config.writes is not None:
            raise UserError(
                "this trainer takes only SAEs, which write the one value that they read; this dictionary reads "
                f"{config.reads} and writes {config.targets}"
            )
        names = {field.name for field in dataclasses.fields(cls)}
        for field in dataclasses.fields(DictionaryConfig):
            value = getattr(config, field.name)
            if field.name not in {*names, "optimizer"} and value != field.default:
                raise UserError(
                    f"the config for {config.address} sets {field.name}={value}, which {cls.__name__} does not have: "
                    f"leave it out{INSTEAD.get(field.name, '')}"
                )
        values: dict[str, Any] = {name: getattr(config, name) for name in names}
        values["address"] = config.reads[0]
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class EndToEndSAEConfig(SAEConfig):
    """An SAE of one value in end-to-end training (`train_end_to_end`), with an optimizer of its own."""

    resampling: Resampling | None = None
    optimizer: Adam = dataclasses.field(default_factory=Adam)


def check_sites(configs: Sequence[SAEConfig], trainer: str) -> None:
    """Raise UserError unless `configs` has at least one config and all addresses differ."""
    sites = [config.address for config in configs]
    if not configs or len(set(sites)) != len(sites):
        raise UserError(f"{trainer} needs dictionaries at different addresses, at least one; got {sites}")
    for config in configs:
        if not isinstance(config, SAEConfig):
            raise UserError(
                f"{trainer} trains SAEs inside a model; the config for {config.address} is a {type(config).__name__}: "
                "give SAEConfig.of(it), or EndToEndSAEConfig.of(it)"
            )


def older_saes(dictionaries: Sequence[dict[str, Any]], kind: type[SAEConfig]) -> list[dict[str, Any]]:
    """Convert the JSON of a `DictionaryConfig`, which earlier versions stored for each dictionary, to that of
    `kind`."""
    names = [field.name for field in dataclasses.fields(kind)]
    saes = []
    for one in dictionaries:
        if one.get("type") == DictionaryConfig.__name__:
            address = one.get("address", kind.address)
            address = address[0] if isinstance(address, list) else address
            one = {name: one[name] for name in names if name in one} | {"type": kind.__name__, "address": address}
        saes.append(one | {"address": canonical(one.get("address", kind.address))})
    return saes


INSTEAD = {
    "skip_first": ", and give it to the trainer's config",
    "max_norm": "",
    "resampling": " (resampling=None), and bring dead latents back with AuxK",
    "steps": ", and give the trainer's config the steps",
    "buffer": ", and give EndToEndConfig the buffer",
    "matmul": ", or set jax.default_matmul_precision around the call",
}


def check_encoder(activation: Activation) -> None:
    """Raise UserError if the decoder is also the encoder. Such an activation needs decoder rows of norm 1."""
    if not activation.uses_encoder:
        raise UserError(
            f"{type(activation).__name__} encodes with the decoder, whose rows must have norm 1: use it for SAEs of "
            'one value, with writes=None and decoder="unit"'
        )


def check_skip_first(skip_first: int) -> None:
    """Raise UserError if it is below 0."""
    if skip_first < 0:
        raise UserError(f"skip_first={skip_first}: give the number of positions to leave out, at least 0")


def check_at_least_1(config: object, *names: str) -> None:
    """Raise UserError if one of these fields is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{name}={getattr(config, name)}: must be at least 1")
