"""`ProbeMonitor`: a fitted probe that reads one value of the model while it runs. A white-box monitor.

ProbeMonitor(model, fitted.probe(site=site), site, Span("assistant"))
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.aggregators import Aggregator, aggregate
from jax_interp.probes.monitors.monitor import FREE, Cost, ModelMonitor, masked, shifted
from jax_interp.probes.probe import Probe
from jax_interp.probes.token_rules import ALL, TokenRule
from jax_interp.surgery import Model, values_at

_static: dict[str, Any] = {"metadata": {"static": True}}


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ProbeMonitor(ModelMonitor):
    """The score of a probe at a site.

    A probe of sequences pools the tokens itself. A probe of vectors scores the mean vector of the tokens, as
    `gather` takes it, or each token, and an aggregator pools the scores.

    Args:
      model: the model that is watched.
      probe: the probe.
      site: the address of one value `[batch, pos, d]`.
      rule: the tokens that count.
      aggregator: how the scores of the tokens become one, for a probe of vectors. None: the score of the mean vector.
      name: the name in tables.
      cost: the cost beside the forward pass, which is made anyway. The default is 0; `probe_cost` counts
        it.
      batch: the number of examples in one forward pass.
    """

    model: Model
    probe: Probe
    site: str = dataclasses.field(**_static)
    rule: TokenRule = dataclasses.field(default=ALL, **_static)
    aggregator: Aggregator | None = dataclasses.field(default=None, **_static)
    name: str = dataclasses.field(default="probe", **_static)
    cost: Cost = dataclasses.field(default=FREE, **_static)
    batch: int = dataclasses.field(default=32, **_static)

    access = "white box"

    def score(
        self,
        tokens: Int[Array, "example pos"],
        mask: Bool[Array, "example pos"] | None,
        read: Bool[Array, "example pos"],
        shift: Float[Array, "example pos d"] | None = None,
    ) -> Float[Array, " example"]:
        x = upcast(values_at(shifted(self.model, shift), self.site)(tokens, **masked(mask))[self.site])
        if x.ndim < 3 or x.shape[:2] != tokens.shape:
            raise UserError(f"{self.site} has shape {x.shape}: a probe reads one vector for each token")
        x = x.reshape(*tokens.shape, -1)
        x = jnp.where(read[..., None], x, jnp.zeros_like(x))  # padding may be NaN
        if self.probe.reads == "sequences":
            return self.probe.score(x, read)
        if self.aggregator is not None:
            return aggregate(self.aggregator, self.probe.token_scores(x), read)
        weight = read.astype(x.dtype) / jnp.sum(read, axis=-1, keepdims=True).astype(x.dtype)
        return self.probe.score(jnp.einsum("np,npd->nd", weight, x, precision=jax.lax.Precision.HIGHEST))


def probe_cost(probe: Probe) -> Cost:
    """2 FLOP for each parameter of a probe and each token, beside the forward pass of the model."""
    return Cost(per_token=2.0 * sum(leaf.size for leaf in jax.tree.leaves(probe)))
