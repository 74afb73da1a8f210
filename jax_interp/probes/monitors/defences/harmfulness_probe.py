"""The harmfulness probe: a probe of single tokens of responses, on a model that is not changed.

It is the baseline of Zou et al. (2024, arXiv:2406.04313): the alarm is on if any token of the response is flagged.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.probes.gather import gather_tokens
from jax_interp.probes.kind import Kind, Rows
from jax_interp.probes.monitors.defences.defended import Alarm, Defended
from jax_interp.probes.monitors.defences.examples import RESPONSE, DefenceData, texts_of
from jax_interp.probes.probe import Probe
from jax_interp.probes.token_rules import Span
from jax_interp.surgery import Model


def harmfulness_probe(
    kind: Kind, model: Model, data: DefenceData, site: str, *, seed: int = 0, batch: int = 128
) -> Defended:
    """Fit a probe that tells tokens of harmful responses from tokens of benign ones.

    Each token has the label of its response. Classes have equal weight.

    Args:
      kind: a kind of probe that reads one vector, such as `Logistic()` or `MLP()`. If it has several strengths of
        regularisation, the first one is taken.
      model: the model. It is not changed.
      data: `train` has the examples.
      site: the address of a value `[batch, pos, d]`.
      seed: the seed of a kind that draws numbers.
      batch: the number of examples in one forward pass.

    Returns:
      The model and its alarm, with the threshold of the probe. `compare_defences` chooses thresholds on benign
      examples.

    Raises:
      UserError: the kind does not read single vectors, a class is empty, or the site is not one value per token.
    """
    name = type(kind).__name__
    if kind.takes != "rows":
        raise UserError(f"a harmfulness probe reads single tokens; {name} reads {kind.takes}")
    harmful = texts_of(data.train).harmful
    if len(np.unique(harmful)) < 2:
        raise UserError(f"{data.train.name} needs harmful and benign examples")
    sequences = gather_tokens(model, data.train, site, Span(RESPONSE), batch=batch)
    if len(sequences.sites) != 1:
        raise UserError(f"{site!r} names {len(sequences.sites)} values: an alarm reads one")
    (name,) = sequences.sites
    example, pos = np.nonzero(sequences.read)
    x, y = sequences.values[name][example, pos], harmful[example].astype(np.int32)
    weight = np.where(y == 1, len(y) / (2 * y.sum()), len(y) / (2 * (y == 0).sum())).astype(np.float32)
    probe = _fit(kind, Rows(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weight)), jax.random.key(seed))
    return Defended(model, Alarm(probe, jnp.asarray(probe.threshold, jnp.float32), name))


@partial(jax.jit, static_argnums=0)
def _fit(kind: Kind, rows: Rows, key: jax.Array) -> Probe:
    strength = jnp.asarray(kind.strengths[0], jnp.float32) if kind.strengths else None
    return kind.fit(rows, strength, key)
