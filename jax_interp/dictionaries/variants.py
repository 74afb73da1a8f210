"""The published dictionaries as configs: `variants.gated("blocks.2.resid_post", l1=0.01, steps=2000)`.

Each gives a `DictionaryConfig` with the activation, the loss and the constraints that belong together; any of its
fields can be given as well. Inputs are scaled to E‖x‖² = d and the loss is the fraction of variance unexplained, so one
strength serves many sites; λ beside a plain SSE of inputs with E‖x‖² = 1 is λ / √d here for an L1, and λ for an L0.

Where a paper's optimizer settings are for runs a hundred times as long they are not copied: the config's defaults are
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
    """JumpReLU with an L0 penalty, or drawn to an L0 of `target` (Rajamanoharan et al. 2024, arXiv:2407.14435)."""
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
    """TopK with AuxK, and Multi-TopK where `multi` (Gao et al. 2024, arXiv:2406.04093)."""
    loss = (Reconstruction(), AuxK(), *((MultiTopK(),) if multi else ()))
    return DictionaryConfig(address, activation=TopK(k), loss=loss).with_fields(**fields)


def group_max(address: Address, k: int = 32, **fields: Any) -> DictionaryConfig:
    """The largest of each of k groups."""
    return DictionaryConfig(address, activation=GroupMax(k)).with_fields(**fields)


def batch_topk(address: Address, k: int = 32, **fields: Any) -> DictionaryConfig:
    """BatchTopK with AuxK, exported as JumpReLU (Bussmann et al. 2024, arXiv:2412.06410)."""
    return DictionaryConfig(address, activation=BatchTopK(k)).with_fields(**fields)


def matryoshka(address: Address, k: int = 32, random: int = 0, **fields: Any) -> DictionaryConfig:
    """BatchTopK whose first features reconstruct without the later ones: fixed prefixes, or `random` many drawn anew
    each step (Bussmann et al. 2025, arXiv:2503.17547; Nabeshima 2024)."""
    loss = (Matryoshka(random=random), AuxK())
    return DictionaryConfig(address, activation=BatchTopK(k), loss=loss).with_fields(**fields)


def matching_pursuit(address: Address, k: int = 16, **fields: Any) -> DictionaryConfig:
    """The decoder as its own encoder, k greedy steps."""
    base = DictionaryConfig(address, activation=MatchingPursuit(k), loss=(Reconstruction(),))
    return base.with_fields(**fields)


def transcoder(read: str, write: str, k: int = 32, skip: bool = False, **fields: Any) -> DictionaryConfig:
    """TopK from what goes into an MLP to what comes out, with a linear skip beside it or not (Dunefsky et al. 2024,
    arXiv:2406.11944; Paulo et al. 2025, arXiv:2501.18823)."""
    base = DictionaryConfig(read, writes=write, activation=TopK(k), skip=skip, centred=False)
    return base.with_fields(**fields)


def crosscoder(addresses: tuple[str, ...], l1: float = 0.008, **fields: Any) -> DictionaryConfig:
    """One code for several values, ReLU with the L1 of decoder norms (Lindsey et al. 2024)."""
    return april(addresses, l1, **fields)


def batch_topk_crosscoder(addresses: tuple[str, ...], k: int = 32, **fields: Any) -> DictionaryConfig:
    """One code for several values, BatchTopK by activation times decoder norm (Minder et al. 2025, arXiv:2504.02922):
    without the shrinkage by which an L1 makes shared features look as if they were one model's alone."""
    base = DictionaryConfig(
        addresses, activation=BatchTopK(k, weighted=True), loss=(Reconstruction(), AuxK()), decoder="free"
    )
    return base.with_fields(**fields)


def cross_layer(
    reads: tuple[str, ...], writes: tuple[str, ...] | None, sparsity: float = 2e-3, **fields: Any
) -> CrossLayerConfig:
    """A cross-layer transcoder, JumpReLU with a tanh penalty on latents times the norm of their decoders to all targets
    together (Ameisen et al. 2025); without `writes` a weakly causal crosscoder (Lindsey et al. 2024)."""
    loss = (Reconstruction(), Tanh(sparsity), PreActivation())
    base = CrossLayerConfig(reads, writes=writes, activation=JumpReLU(0.1, 2.0), loss=loss, optimizer=Adam(clip=1.0))
    return base.with_fields(**fields)


def batch_topk_cross_layer(
    reads: tuple[str, ...], writes: tuple[str, ...] | None, k: int = 32, **fields: Any
) -> CrossLayerConfig:
    """The same with k latents a source, by activation times decoder norm, instead of a penalty."""
    base = CrossLayerConfig(reads, writes=writes, activation=BatchTopK(k, weighted=True))
    return base.with_fields(**fields)
