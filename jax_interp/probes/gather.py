"""The activations that probes read: one vector for each example (`gather`), or one for each token (`gather_tokens`).

vectors = gather(model, data, "blocks.*.resid_post", (Last(), All()))
sequences = gather_tokens(model, data, "blocks.2.resid_post")

Blocks after the last site are not run. Padding is masked in the model and never read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.token_rules import ALL, LAST, TokenRule, tokens_of
from jax_interp.surgery import Address, Model, depth_of, values_at
from jax_interp.surgery.address import canonical, flatten

Quiet: Callable[[int, int], None] = lambda done, total: None


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
    on_batch: Callable[[int, int], None] = Quiet,
) -> Vectors:
    """Read one vector for each example.

    Args:
      model: any model that names its values, with or without edits. It takes `mask=` if there is padding.
      data: the examples.
      at: addresses of values `[batch, pos, d]`. `blocks.*.resid_post` is one site for each layer.
      rules: the token rules. A rule of several tokens gives their mean.
      batch: the number of examples in one forward pass.
      on_batch: called with (examples done, examples) after each batch.

    Raises:
      UserError: a site has no position axis, a rule names no token of an example, or a value is not finite.
    """
    rules = (rules,) if isinstance(rules, TokenRule) else tuple(rules)
    names = single_sites(model, data, at)
    weight = np.stack([tokens_of(rule, data) for rule in rules]).astype(np.float32)
    weight /= weight.sum(axis=-1, keepdims=True)
    out: dict[str, np.ndarray] = {}
    for rows, tokens, mask in _batches(data, batch):
        means = _means(names, model, tokens, mask, weight[:, rows, : tokens.shape[1]])
        for name, value in zip(names, means, strict=True):
            found = np.asarray(value)
            whole = out.setdefault(name, np.empty((len(rules), len(data), found.shape[-1]), np.float32))
            whole[:, rows] = found[:, : len(rows)]
        on_batch(int(rows[-1]) + 1, len(data))
    _check_finite(out)
    return Vectors(data, rules, out)


def gather_tokens(
    model: Model,
    data: LabelledTokens,
    at: str | Sequence[str],
    rule: TokenRule = ALL,
    *,
    batch: int = 32,
    on_batch: Callable[[int, int], None] = Quiet,
) -> Sequences:
    """Read one vector for each token of a rule. Args and Raises as in `gather`."""
    names, read = single_sites(model, data, at), tokens_of(rule, data)
    out: dict[str, np.ndarray] = {}
    for rows, tokens, mask in _batches(data, batch):
        for name, value in zip(names, _values(names, model, tokens, mask), strict=True):
            found = np.asarray(value)
            whole = out.setdefault(name, np.zeros((*read.shape, found.shape[-1]), np.float32))
            kept = read[rows, : tokens.shape[1], None]
            whole[rows, : tokens.shape[1]] = np.where(kept, found[: len(rows)], 0)
        on_batch(int(rows[-1]) + 1, len(data))
    _check_finite(out)
    return Sequences(data, rule, read, out)


def single_sites(model: Model, data: LabelledTokens, at: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses of single layers that these addresses name, in order.

    Raises:
      UserError: there is no such value, or it is not `[batch, pos, ...]`.
    """
    names: list[str] = []
    for text in flatten(at):
        address = Address.parse(canonical(text))
        layers = None if address.is_single else address.resolve(depth_of(model))
        names += [str(address)] if layers is None else [f"blocks.{layer}.{address.name}" for layer in layers]
    found = tuple(dict.fromkeys(names))
    shape = (1, data.tokens.shape[1])
    mask = jax.ShapeDtypeStruct(shape, jnp.bool_) if _needs_mask(data) else None
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    for name, value in zip(found, jax.eval_shape(partial(_values, found), model, tokens, mask), strict=True):
        if value.ndim < 3 or value.shape[:2] != shape:
            raise UserError(f"{name} has shape {value.shape} for tokens {shape}: a probe reads one vector per token")
    return found


def _needs_mask(data: LabelledTokens) -> bool:
    return not bool(data.mask.all())


def _batches(
    data: LabelledTokens, batch: int
) -> Iterator[tuple[Int[np.ndarray, " row"], Int[np.ndarray, "row pos"], Bool[np.ndarray, "row pos"] | None]]:
    """Examples in order. The last batch is filled up with copies of its last row, so that one program is compiled."""
    if batch < 1:
        raise UserError(f"batch={batch} must be at least 1")
    for start in range(0, len(data), batch):
        rows = np.arange(start, min(start + batch, len(data)))
        filled = np.pad(rows, (0, min(batch, len(data)) - len(rows)), mode="edge")
        yield rows, data.tokens[filled], (data.mask[filled] if _needs_mask(data) else None)


@partial(jax.jit, static_argnums=0)
def _values(names: tuple[str, ...], model: Model, tokens: Array, mask: Array | None) -> list[Array]:
    inputs = {} if mask is None else {"mask": mask}
    found = values_at(model, *names)(tokens, **inputs)
    wide = [upcast(found[name]).astype(jnp.float32) for name in names]
    return [x.reshape(*x.shape[:2], -1) if x.ndim > 3 else x for x in wide]


@partial(jax.jit, static_argnums=0)
def _means(
    names: tuple[str, ...], model: Model, tokens: Array, mask: Array | None, weight: Float[Array, "rule row pos"]
) -> list[Array]:
    pad = tokens.shape[0] - weight.shape[1]
    weight = jnp.pad(weight, ((0, 0), (0, pad), (0, 0)))
    some = jnp.any(weight > 0, axis=0)[..., None]
    means = []
    for x in _values(names, model, tokens, mask):
        x = jnp.where(some, x, jnp.zeros_like(x))  # a value at a token that is not read may be anything, NaN too
        means.append(jnp.einsum("rnp,npd->rnd", weight, x, precision=jax.lax.Precision.HIGHEST))
    return means


def _check_finite(values: Mapping[str, np.ndarray]) -> None:
    for name, x in values.items():
        if not np.isfinite(x).all():
            raise UserError(f"{name} is not finite at a token that is read: look for NaN in the model and its edits")
