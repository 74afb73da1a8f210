"""The logit lens: what the model would predict if it stopped at each layer (nostalgebraist 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from jax_interp.analysis.addresses import reads_activations
from jax_interp.analysis.parts import Parts, Pos
from jax_interp.analysis.readout import readout
from jax_interp.analysis.residual import accumulated_resid
from jax_interp.surgery import Activations


@reads_activations(accumulated_resid)
def logit_lens(
    model: Any,
    acts: Activations,
    *,
    incl_mid: bool = False,
    pos: Pos = None,
    keep: Callable[[Float[Array, "batch *pos vocab"]], Any] = lambda logits: logits,
) -> Parts:
    """The logits that the stream gives at each layer, `0_pre` to `final_post`, which are the model's own.

    Logits are `[part, batch, pos, vocab]`; where that is much, `keep` says what of each layer's is kept (an entropy,
    a token's rank), and one layer's logits are in memory at a time. Reads what `accumulated_resid` reads.
    """
    stack = accumulated_resid(model, acts, incl_mid=incl_mid, pos=pos)
    return Parts(jax.lax.map(lambda resid: keep(readout(model, resid)), stack.values), stack.labels)
