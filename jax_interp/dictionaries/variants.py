"""The published dictionaries as configs: `variants.gated("blocks.2.resid_post", l1=0.01, steps=2000)`.

Each function returns a config with the activation, the loss and the constraints of one publication. Every other field
of the config can be given as a keyword. Inputs are scaled to E‖x‖² = d and the loss is the fraction of variance
unexplained, so one penalty strength works at many sites. To convert a published strength λ (for an SSE of inputs with
E‖x‖² = 1): use λ / √d for an L1, and λ for an L0.

Optimizer settings of a paper are not copied where its runs are a hundred times as long: the defaults of the config are
for a small model on a laptop.
"""

from __future__ import annotations

from typing import Any

from jax_interp.dictionaries.activations import BatchTopK, Gated, GroupMax, JumpReLU, MatchingPursuit, ReLU, TopK
from jax_interp.dictionaries.losses import (
    L0,
    L1,
    AnnealedLp,
    AuxK,
    FrozenDecoder,
    GateL1,
    Matryoshka,
    MultiTopK,
    PreActivation,
    Reconstruction,
    Tanh,
    TargetL0,
)
from jax_interp.dictionaries.training.config import Adam, CrossLayerConfig, DictionaryConfig, Resampling

Address = str | tuple[str, ...]


def relu(address: Address, l1: float = 0.008, **fields: Any) -> DictionaryConfig:
    """ReLU with L1, decoder rows of norm 1, resampling of dead latents (Bricken et al. 2023)."""
    base = DictionaryConfig(address, activation=ReLU(), loss=(Reconstruction(), L1(l1)), resampling=Resampling())
    return base.with_fields(**fields)


def april(address: Address, l1: float = 0.008, **fields: Any) -> DictionaryConfig:
    """ReLU with L1 weighted by free decoder norms, no pre-bias, clipped gradients (Anthropic, April 2024)."""
    loss = (Reconstruction(), L1(l1, weight="l1_of_norms"))
    base = DictionaryConfig(
        address, activation=ReLU(), loss=loss, decoder="free", centred=False, optimizer=Adam(clip=1.0)
    )
    return base.with_fields(**fields)


def p_anneal(address: Address, l1: float = 0.008, **fields: Any) -> DictionaryConfig:
    """ReLU with an Lp penalty whose p falls from 1 (Karvonen et al. 2024)."""
    base = DictionaryConfig(address, activation=ReLU(), loss=(Reconstruction(), AnnealedLp(l1)))
    return base.with_fields(**fields)


def gated(address: Address, l1: float = 0.008, **fields: Any) -> DictionaryConfig:
    """Gated, with L1 on the gate and the frozen-decoder term (Rajamanoharan et al. 2024, arXiv:2404.16014)."""
    loss = (Reconstruction(), GateL1(l1), FrozenDecoder())
    base = DictionaryConfig(address, activation=Gated(), loss=loss, optimizer=Adam(b1=0.0))
    return base.with_fields(**fields)


def jumprelu(address: Address, l0: float | None = 1e-3, target: float | None = None, **fields: Any) -> DictionaryConfig:
    """JumpReLU with an L0 penalty, or with a penalty that keeps L0 near `target` (Rajamanoharan et al. 2024,
    arXiv:2407.14435)."""
    sparsity = TargetL0(target=target) if target is not None else L0(1e-3 if l0 is None else l0)
    base = DictionaryConfig(address, activation=JumpReLU(), loss=(Reconstruction(), sparsity), optimizer=Adam(b1=0.0))
    return base.with_fields(**fields)


def tanh_jumprelu(address: Address, sparsity: float = 2e-3, **fields: Any) -> DictionaryConfig:
    """JumpReLU with a tanh penalty and a pre-activation term, free decoder norms (Anthropic, January 2025)."""
    loss = (Reconstruction(), Tanh(sparsity), PreActivation())
    base = DictionaryConfig(
        address, activation=JumpReLU(0.1, 2.0), loss=loss, decoder="free", centred=False, optimizer=Adam(clip=1.0)
    )
    return base.with_fields(**fields)


def topk(address: Address, k: int = 32, multi: bool = False, **fields: Any) -> DictionaryConfig:
    """TopK with AuxK, and with Multi-TopK if `multi` (Gao et al. 2024, arXiv:2406.04093)."""
    loss = (Reconstruction(), AuxK(), *((MultiTopK(),) if multi else ()))
    return DictionaryConfig(address, activation=TopK(k), loss=loss).with_fields(**fields)


def group_max(address: Address, k: int = 32, **fields: Any) -> DictionaryConfig:
    """GroupMax: the largest pre-activation of each of k groups of features, with AuxK (EleutherAI's sparsify)."""
    return DictionaryConfig(address, activation=GroupMax(k)).with_fields(**fields)


def batch_topk(address: Address, k: int = 32, **fields: Any) -> DictionaryConfig:
    """BatchTopK with AuxK, exported as JumpReLU (Bussmann et al. 2024, arXiv:2412.06410)."""
    return DictionaryConfig(address, activation=BatchTopK(k)).with_fields(**fields)


def matryoshka(address: Address, k: int = 32, random: int = 0, **fields: Any) -> DictionaryConfig:
    """BatchTopK whose first features also reconstruct the input without the later features (Bussmann et al. 2025,
    arXiv:2503.17547). The prefixes are fixed. With `random` > 0, that many are drawn at each step (Nabeshima 2024)."""
    loss = (Matryoshka(random=random), AuxK())
    return DictionaryConfig(address, activation=BatchTopK(k), loss=loss).with_fields(**fields)


def matching_pursuit(address: Address, k: int = 16, **fields: Any) -> DictionaryConfig:
    """Matching pursuit: k greedy steps, in which the decoder is also the encoder."""
    base = DictionaryConfig(address, activation=MatchingPursuit(k), loss=(Reconstruction(),))
    return base.with_fields(**fields)


def transcoder(read: str, write: str, k: int = 32, skip: bool = False, **fields: Any) -> DictionaryConfig:
    """TopK from the input of an MLP to its output (Dunefsky et al. 2024, arXiv:2406.11944). With `skip`, a linear map
    from input to output is added (Paulo et al. 2025, arXiv:2501.18823)."""
    base = DictionaryConfig(read, writes=write, activation=TopK(k), skip=skip, centred=False)
    return base.with_fields(**fields)


def crosscoder(addresses: tuple[str, ...], l1: float = 0.008, **fields: Any) -> DictionaryConfig:
    """A crosscoder: one code for several values. ReLU with an L1 weighted by decoder norms (Lindsey et al. 2024)."""
    return april(addresses, l1, **fields)


def batch_topk_crosscoder(addresses: tuple[str, ...], k: int = 32, **fields: Any) -> DictionaryConfig:
    """A crosscoder with BatchTopK, which selects latents by activation times decoder norm (Minder et al. 2025,
    arXiv:2504.02922). An L1 shrinks small decoder norms, so that a shared feature can look like a feature of one model
    only. BatchTopK has no such shrinkage."""
    base = DictionaryConfig(
        addresses, activation=BatchTopK(k, weighted=True), loss=(Reconstruction(), AuxK()), decoder="free"
    )
    return base.with_fields(**fields)


def cross_layer(
    reads: tuple[str, ...], writes: tuple[str, ...] | None, sparsity: float = 2e-3, **fields: Any
) -> CrossLayerConfig:
    """A cross-layer transcoder with JumpReLU and a tanh penalty (Ameisen et al. 2025). The penalty weights a latent by
    the norm of its decoders to all targets together. With `writes=None` it is a weakly causal crosscoder (Lindsey et
    al. 2024)."""
    loss = (Reconstruction(), Tanh(sparsity), PreActivation())
    base = CrossLayerConfig(reads, writes=writes, activation=JumpReLU(0.1, 2.0), loss=loss, optimizer=Adam(clip=1.0))
    return base.with_fields(**fields)


def batch_topk_cross_layer(
    reads: tuple[str, ...], writes: tuple[str, ...] | None, k: int = 32, **fields: Any
) -> CrossLayerConfig:
    """A cross-layer transcoder with BatchTopK instead of a penalty: k latents per source, selected by activation times
    decoder norm."""
    base = CrossLayerConfig(reads, writes=writes, activation=BatchTopK(k, weighted=True))
    return base.with_fields(**fields)
