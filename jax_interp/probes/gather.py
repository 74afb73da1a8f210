"""The activations that probes read: one vector for each example (`gather`), or one for each token (`gather_tokens`).

vectors = gather(model, data, "blocks.*.resid_post", (Last(), All()))
sequences = gather_tokens(model, data, "blocks.2.resid_post")

Blocks after the last site are not run. Padding is masked in the model and never read. Texts are batched by length, so
the rows of a batch are not neighbours: an edit must not have one value for each row of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.text_reader import QUIET, OnBatch, TextReader, wide_values
from jax_interp.probes.token_rules import ALL, LAST, TokenRule, tokens_of
from jax_interp.surgery import Model
from jax_interp.training.placement import automatic


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """One vector for each example, at each site and for each token rule. On the host, in float32.

    Args:
      data: the examples.
      rules: the token rules.
      values: for each site, the mean over the tokens of each rule.
    """

    data: LabelledTokens
    rules: tuple[TokenRule, ...]
    values: Mapping[str, Float[np.ndarray, "rule example d"]]

    @property
    def sites(self) -> tuple[str, ...]:
        """The addresses, in order."""
        return tuple(self.values)

    def stacked(self) -> Float[np.ndarray, "site rule example d"]:
        """All sites in one array. Raises UserError if their widths differ."""
        widths = {site: x.shape[-1] for site, x in self.values.items()}
        if len(set(widths.values())) > 1:
            raise UserError(f"the sites have different widths, {widths}: give one call for each width")
        return np.stack(list(self.values.values()))

    def take(self, rows: Bool[np.ndarray, " example"] | Int[np.ndarray, " row"]) -> Vectors:
        """Some of the examples."""
        return Vectors(self.data.take(rows), self.rules, {site: x[:, rows] for site, x in self.values.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """One vector for each token, at each site. On the host, in float32.

    Args:
      data: the examples.
      rule: the rule that names the tokens.
      read: the tokens of the rule.
      values: for each site, the value of each token. 0 at tokens that are not read.
    """

    data: LabelledTokens
    rule: TokenRule
    read: Bool[np.ndarray, "example pos"]
    values: Mapping[str, Float[np.ndarray, "example pos d"]]

    @property
    def sites(self) -> tuple[str, ...]:
        """The addresses, in order."""
        return tuple(self.values)

    def take(self, rows: Bool[np.ndarray, " example"] | Int[np.ndarray, " row"]) -> Sequences:
        """Some of the examples."""
        values = {site: x[rows] for site, x in self.values.items()}
        return Sequences(self.data.take(rows), self.rule, self.read[rows], values)


def gather(
    model: Model,
    data: LabelledTokens,
    at: str | Sequence[str],
    rules: TokenRule | Sequence[TokenRule] = LAST,
    *,
    batch: int = 32,
    on_batch: OnBatch = QUIET,
    place: Mesh | None = None,
) -> Vectors:
    """Read one vector for each example.

    Args:
      model: any model that names its values, with or without edits, in any precision. If there is padding, it gets
        `mask=`; a model without this argument gets texts of one length at a time, without padding.
      data: the examples.
      at: addresses of values `[batch, pos, ...]`. `blocks.*.resid_post` is one site for each layer.
      rules: the token rules. A rule of several tokens gives their mean.
      batch: the number of examples in one forward pass.
      on_batch: called with (examples done, examples) after each batch.
      place: a mesh on which the model is placed, with the batches split by rows. None: the mesh that the
        model is on, if it is on one.

    Raises:
      UserError: a site has no position axis, a rule names no token of an example, two rules have one name, a token id
        is outside the vocabulary, a value is not finite, or the vectors do not fit into memory.
    """
    rules = (rules,) if isinstance(rules, TokenRule) else tuple(rules)
    if len(set(map(str, rules))) < len(rules) or not rules:
        raise UserError(f"give rules with different names, not {', '.join(map(str, rules)) or 'none'}")
    weight = np.stack([tokens_of(rule, data) for rule in rules], axis=1).astype(np.float32)
    weight /= weight.sum(axis=-1, keepdims=True)
    reader = TextReader.of(model, data, at, batch, place)
    reader.check_memory(len(rules) * len(data), f"{len(rules)} rules × {len(data)} examples", "examples or rules")
    out = {name: np.empty((len(rules), len(data), width), np.float32) for name, width in reader.widths.items()}
    for some, means in reader.batches(_means, weight, on_batch=on_batch):
        for name, value in zip(out, means, strict=True):
            out[name][:, some.rows] = on_host(value)[: len(some.rows)].swapaxes(0, 1)
    for name, x in out.items():
        _check_finite(name, x, 1)
    return Vectors(data, rules, out)


def gather_tokens(
    model: Model,
    data: LabelledTokens,
    at: str | Sequence[str],
    rule: TokenRule = ALL,
    *,
    batch: int = 32,
    on_batch: OnBatch = QUIET,
    place: Mesh | None = None,
) -> Sequences:
    """Read one vector for each token of a rule. Args and Raises as in `gather`."""
    read = tokens_of(rule, data)
    reader = TextReader.of(model, data, at, batch, place)
    reader.check_memory(read.size, f"{len(data)} examples × {read.shape[1]} tokens", "examples or a shorter context")
    out = {name: np.zeros((*read.shape, width), np.float32) for name, width in reader.widths.items()}
    for some, found in reader.batches(_tokens, read, on_batch=on_batch):
        for name, value in zip(out, found, strict=True):
            out[name][some.rows, : some.length] = on_host(value)[: len(some.rows)]
    for name, x in out.items():
        _check_finite(name, x, 0)
    return Sequences(data, rule, read, out)


@partial(jax.jit, static_argnums=0)
@automatic
def _tokens(names: tuple[str, ...], model: Model, tokens: Array, mask: Array | None, read: Array) -> list[Array]:
    # a value at a token that is not read may be anything, NaN too
    return [jnp.where(read[..., None], x, jnp.zeros_like(x)) for x in wide_values(names, model, tokens, mask)]


@partial(jax.jit, static_argnums=0)
@automatic
def _means(
    names: tuple[str, ...], model: Model, tokens: Array, mask: Array | None, weight: Float[Array, "row rule pos"]
) -> list[Array]:
    some = jnp.any(weight > 0, axis=1)
    read = _tokens(names, model, tokens, mask, some)
    return [jnp.einsum("nrp,npd->nrd", weight, x, precision=jax.lax.Precision.HIGHEST) for x in read]


def _check_finite(name: str, x: np.ndarray, axis: int) -> None:
    """Raise UserError if a value is not finite. `axis` is the axis of examples."""
    for example in range(x.shape[axis]):
        if not np.isfinite(x[example] if axis == 0 else x[:, example]).all():
            raise UserError(
                f"{name} is not finite at a token of example {example} that is read: look for NaN in the model and its "
                "edits, or for an overflow if it computes in float16"
            )
