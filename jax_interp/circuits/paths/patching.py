"""Path patching: let a sender change what one receiver reads, and nothing else (Wang et al. 2023, arXiv:2211.00593).

contrast = make_contrast(clean, corrupted, metric)
path_patch(model, contrast, ["a0.h1", "a1.h2"], "logits")       # each head -> the logits
path_patch(model, contrast, heads, ["a9.h6<q>", "a9.h9<q>"])    # each head -> the queries of two heads
direct_paths(model, contrast, heads, ["a9.h6<q>", "m9"])        # each head -> each receiver, no MLP between
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.circuits.contrast import Contrast, Direction, inputs_of
from jax_interp.circuits.paths.components import (
    Parts,
    labels,
    receiver_masks,
    sender_masks,
    shape_of,
)
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Each, Edit, Model, at, edit, values_at

_READS = {"q_input": "attn_in", "k_input": "attn_in", "v_input": "attn_in", "mlp_in": "mlp_in"}
"""The value that holds the input of each kind of receiver, before copies are made of it."""


def path_patch(
    model: Model,
    contrast: Contrast,
    senders: Sequence[Parts],
    receivers: Parts,
    *,
    direction: Direction = "noise",
    freeze_mlps: bool = False,
    batch_size: int = 8,
) -> Labelled:
    """Patch the paths from each sender to a set of receivers, in one compiled program.

    Four runs, with noise (denoise exchanges the two prompts):

    1. the corrupted prompt: the outputs of all senders;
    2. the clean prompt: the outputs of all heads (and MLPs);
    3. the clean prompt, with the sender's output of run 1, and the outputs of all other heads frozen to those of run 2.
       What the receivers read is kept;
    4. the clean prompt, in which the receivers read what run 3 kept.

    With `receivers="logits"` run 3 is the result. A receiver does not see what an earlier receiver changes. Norms are
    computed as usual, in run 3 too.

    Args:
      model: any model whose heads have separate inputs (`blocks.*.q_input`), under surgery or not.
      contrast: the prompts and the metric.
      senders: heads "a1.h2", MLPs "m1", or "input", the embedding. A pair ("a1.h2", pos) is a sender at some positions,
        and a list of names and pairs is one sender of several parts.
      receivers: "a2.h0<q>", "<k>", "<v>", a whole head "a2.h0", "m2", a pair of one of these and positions, a list of
        them, or "logits". In a model with grouped heads, <k> and <v> count key/value heads.
      direction: noise: corrupted values go into the clean run, as in the paper. denoise: the other way.
      freeze_mlps: freeze the MLPs too, so that paths through MLPs are left out. Default: MLPs between sender and
        receiver are computed, as in the paper.
      batch_size: how many senders are computed together. More take more memory.

    Returns:
      The metric of run 4, [sender, prompt]. A path that does not exist has the metric of the plain run
      (`baseline`).

    Raises:
      UserError: there is no such part or position, or `receivers` has the logits and other parts.

    Example:
        effects = path_patch(model, contrast, [f"a{l}.h{h}" for l in range(9) for h in range(12)], ["a9.h9<q>"])
        clean, corrupted = baseline(model, contrast)
        normalised(effects.mean("prompt").values, clean.mean(), corrupted.mean())
    """
    to_logits = receivers in ("logits", ["logits"])
    masks = None if to_logits else _receivers([receivers], model, contrast)
    values = _run(model, contrast, senders, masks, direction, freeze_mlps, (batch_size, 1))
    return Labelled(values[:, 0], {"sender": labels(senders), "prompt": range(values.shape[2])}, "metric")


def direct_paths(
    model: Model,
    contrast: Contrast,
    senders: Sequence[Parts],
    receivers: Sequence[Parts],
    *,
    direction: Direction = "denoise",
    batch_size: int = 8,
) -> Labelled:
    """Patch the direct path from each sender to each receiver, in one compiled program.

    The sender's output of the other run is added to what the receiver reads, instead of its output of this run. All
    other parts see no change. No other component lies on the path. With heads as receivers, this measures how much the
    queries, keys or values of a head depend on an earlier head on these prompts. (The composition scores of weights in
    `analysis.composition` do not look at prompts.)

    Args:
      model: as in `path_patch`.
      contrast: the prompts and the metric.
      senders: as in `path_patch`.
      receivers: parts as in `path_patch`, without the logits. Each entry is a receiver of its own.
      direction: denoise (default, as in TransformerLens's `get_act_patch_direct_path`): clean outputs go into the
        corrupted run. noise: the other way.
      batch_size: how many receivers are computed together.

    Returns:
      The metric, [sender, receiver, prompt]. A path that does not exist, because the receiver is not later than the
      sender, has the metric of the plain run.

    Raises:
      UserError: there is no such part or position.
    """
    masks = _receivers(receivers, model, contrast)
    values = _run(model, contrast, senders, masks, direction, True, (1, batch_size))
    axes = {"sender": labels(senders), "receiver": labels(receivers), "prompt": range(values.shape[2])}
    return Labelled(values, axes, "metric")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _From:
    """An edit: the entries in `mask` from `values`, the others from `others` (None: as they are)."""

    values: Array
    mask: Bool[Array, "..."]
    others: Array | None = None

    def __call__(self, x: Array) -> Array:
        others = x if self.others is None else self.others
        return jnp.where(self.mask, self.values, others)


def _receivers(groups: Sequence[Parts], model: Model, contrast: Contrast) -> dict[str, Any]:
    if any("logits" in (group if isinstance(group, list) else [group]) for group in groups):
        raise UserError(
            "the logits see the whole stream, so no other receiver can be patched with them: give 'logits' alone, to "
            "path_patch"
        )
    _not_empty(groups, "receivers")
    return receiver_masks(groups, shape_of(model, contrast), contrast)


def _run(
    model: Model,
    contrast: Contrast,
    senders: Sequence[Parts],
    receivers: dict[str, Any] | None,
    direction: Direction,
    freeze_mlps: bool,
    batch_sizes: tuple[int, int],
) -> Float[np.ndarray, "sender receiver prompt"]:
    if isinstance(senders, str) or min(batch_sizes) < 1:
        raise UserError(f"give a list of senders and a batch_size of at least 1, got {senders!r} and {batch_sizes}")
    _not_empty(senders, "senders")
    shape = shape_of(model, contrast)
    masks = sender_masks(senders, shape, contrast)
    source, target = contrast.runs(direction)
    frozen = ("attn.z", "mlp_out") if freeze_mlps and shape.mlps else ("attn.z",)
    return np.asarray(
        _patched(model, contrast, source, target, masks, receivers, frozen=frozen, batch_sizes=batch_sizes)
    )


def _not_empty(groups: Sequence[Parts], what: str) -> None:
    if not groups or any(group == [] for group in groups):
        raise UserError(f"there are no {what}: give at least one, and no empty list")


@partial(jax.jit, static_argnames=("frozen", "batch_sizes"))
def _patched(
    model: Model,
    contrast: Contrast,
    source: Array,
    target: Array,
    senders: dict[str, Array],
    receivers: dict[str, Array] | None,
    *,
    frozen: tuple[str, ...],
    batch_sizes: tuple[int, int],
) -> Float[Array, "sender receiver prompt"]:
    inputs = inputs_of(model, contrast)
    kinds = [kind for kind in ("attn.z", "mlp_out", "input") if kind in senders or kind in frozen]
    sent = values_at(model, *map(_address, kinds))(source, **inputs)
    own = values_at(model, *map(_address, frozen))(target, **inputs)
    reads = sorted({f"blocks.*.{_READS[kind]}" for kind in receivers or ()})

    def of_sender(masks: dict[str, Array]) -> Float[Array, "receiver prompt"]:
        edits = [_sending(kind, masks, sent, own, frozen) for kind in kinds]
        third = edit(model, *edits)
        if receivers is None:
            return contrast.metric(third(target, **inputs))[None]
        seen = values_at(third, *reads)(target, **inputs)

        def of_receiver(masks: dict[str, Array]) -> Float[Array, " prompt"]:
            fourth = edit(model, *(_receiving(kind, mask, seen) for kind, mask in masks.items()))
            return contrast.metric(fourth(target, **inputs))

        return jax.lax.map(of_receiver, receivers, batch_size=batch_sizes[1])

    return jax.lax.map(of_sender, senders, batch_size=batch_sizes[0])


def _address(kind: str) -> str:
    return "blocks.0.resid_pre" if kind == "input" else f"blocks.*.{kind}"


def _sending(kind: str, masks: dict[str, Array], sent: Any, own: Any, frozen: tuple[str, ...]) -> Edit:
    """The edit of the third run at one kind of value: the senders' outputs, and the others frozen if they are to be."""
    address = _address(kind)
    values, others = sent[address], own[address] if kind in frozen else None
    mask = masks.get(kind)
    mask = jnp.zeros((values.shape[0],) + (1,) * (values.ndim - 1), bool) if mask is None else mask
    fn = _From(values, mask, others)
    return at(address, fn if kind == "input" else Each(fn))  # type: ignore[return-value]


def _receiving(kind: str, mask: Array, seen: Any) -> Edit:
    values = seen[f"blocks.*.{_READS[kind]}"]
    values = values if kind == "mlp_in" else values[:, :, :, None]
    return at(f"blocks.*.{kind}", Each(_From(values, mask)))  # type: ignore[return-value]
