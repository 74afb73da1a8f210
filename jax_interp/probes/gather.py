"""The activations that probes read: one vector for each example (`gather`), or one for each token (`gather_tokens`).

vectors = gather(model, data, "blocks.*.resid_post", (Last(), All()))
sequences = gather_tokens(model, data, "blocks.2.resid_post")

Blocks after the last site are not run. Padding is masked in the model and never read. Texts are batched by length, so
the rows of a batch are not neighbours: an edit must not have one value for each row of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.processes import on_host
from jax_interp.models.sharding import rules_for
from jax_interp.probes.host_memory import check_fits
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.length_batches import LengthBatch, length_batches
from jax_interp.probes.token_rules import ALL, LAST, TokenRule, tokens_of
from jax_interp.surgery import Address, Model, depth_of, values_at
from jax_interp.surgery.address import canonical, flatten
from jax_interp.training.meshes import row_shards
from jax_interp.training.placement import automatic, placed

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
    reader = _Reader.of(model, data, at, batch, place)
    reader.check_memory(len(rules) * len(data), f"{len(rules)} rules × {len(data)} examples", "examples or rules")
    out = {name: np.empty((len(rules), len(data), width), np.float32) for name, width in reader.widths.items()}
    for some, means in reader.batches(_means, weight, on_batch):
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
    on_batch: Callable[[int, int], None] = Quiet,
    place: Mesh | None = None,
) -> Sequences:
    """Read one vector for each token of a rule. Args and Raises as in `gather`."""
    read = tokens_of(rule, data)
    reader = _Reader.of(model, data, at, batch, place)
    reader.check_memory(read.size, f"{len(data)} examples × {read.shape[1]} tokens", "examples or a shorter context")
    out = {name: np.zeros((*read.shape, width), np.float32) for name, width in reader.widths.items()}
    for some, found in reader.batches(_tokens, read, on_batch):
        for name, value in zip(out, found, strict=True):
            out[name][some.rows, : some.length] = on_host(value)[: len(some.rows)]
    for name, x in out.items():
        _check_finite(name, x, 0)
    return Sequences(data, rule, read, out)


def single_sites(model: Model, data: LabelledTokens, at: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses of single layers that these addresses name, in order.

    Raises:
      UserError: there is no such value, or it is not `[batch, pos, ...]`.
    """
    return tuple(site_widths(model, at, data.tokens.shape[1], not data.mask.all())[0])


def site_widths(model: Model, at: str | Sequence[str], length: int, masked: bool) -> tuple[dict[str, int], bool]:
    """(the width of each site that these addresses name, in order; whether the model takes a mask).

    Args:
      model: the model.
      at: the addresses.
      length: the number of positions.
      masked: whether there is padding.

    Raises:
      UserError: there is no such value, or it is not `[batch, pos, ...]`.
    """
    names: list[str] = []
    for text in flatten(at):
        address = Address.parse(canonical(text))
        layers = None if address.is_single else address.resolve(depth_of(model))
        names += [str(address)] if layers is None else [f"blocks.{layer}.{address.name}" for layer in layers]
    if not (found := tuple(dict.fromkeys(names))):
        raise UserError("give at least one address")
    takes_mask = True
    try:
        values = _abstract_values(found, model, length, masked)
    except TypeError as error:  # of Python, for a keyword that a function does not have
        if "unexpected keyword argument 'mask'" not in str(error):
            raise
        values, takes_mask = _abstract_values(found, model, length, False), False
    shorter = _abstract_values(found, model, length - 1, False) if length > 1 else values
    for name, value, less in zip(found, values, shorter, strict=True):
        if value.shape[:2] != (1, length) or value.ndim < 3 or less.shape[2:] != value.shape[2:]:
            raise UserError(
                f"{name} has shape {value.shape} for tokens {(1, length)}: a probe reads one vector of a fixed width "
                "for each token"
            )
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(f"{name} is {value.dtype}: a probe reads real numbers")
    return {name: int(np.prod(x.shape[2:])) for name, x in zip(found, values, strict=True)}, takes_mask


def _abstract_values(names: tuple[str, ...], model: Model, length: int, masked: bool) -> list[jax.ShapeDtypeStruct]:
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    inputs = {"mask": jax.ShapeDtypeStruct((1, length), jnp.bool_)} if masked else {}

    def values(model: Model, tokens: Array, **inputs: Array) -> list[Array]:
        found = values_at(model, *names)(tokens, **inputs)
        return [found[name] for name in names]

    # Without shardings, which would have to be resolved where no mesh is active.
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf
    return jax.eval_shape(automatic(values), jax.tree.map(shape, model), tokens, **inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class _Reader:
    """A model and examples, and how they are read."""

    model: Model
    data: LabelledTokens
    widths: dict[str, int]
    some: list[LengthBatch]
    masked: bool
    place: Mesh | None

    @classmethod
    def of(cls, model: Model, data: LabelledTokens, at: str | Sequence[str], batch: int, place: Mesh | None) -> _Reader:
        if not len(data):
            raise UserError(f"{data.name} has no example")
        widths, takes_mask = site_widths(model, at, data.tokens.shape[1], not data.mask.all())
        masked = takes_mask and not data.mask.all()
        if not takes_mask and not data.mask[:, 0].all():
            raise UserError(
                f"the model takes no mask, and {data.name} is padded on the left: pad on the right, or give the model "
                "the argument `mask`"
            )
        if (check := getattr(model, "check_inputs", None)) is not None:
            check(data.tokens, mask=data.mask)
        place = mesh_of_leaves(model) if place is None else place
        ways = 1 if place is None else row_shards(place)
        some = length_batches(data.mask, batch, multiple=ways, exact=not takes_mask)
        return cls(model, data, widths, some, masked, place)

    def check_memory(self, vectors: int, what: str, fewer: str) -> None:
        check_fits(
            4 * vectors * sum(self.widths.values()),
            f"the activations of {len(self.widths)} sites × {what}",
            f"read fewer sites, {fewer}, or fit probes on a stream (`stream_moments`, `stream_logistic`)",
        )

    def batches(
        self, function: Callable[..., list[Array]], of_tokens: np.ndarray, on_batch: Callable[[int, int], None]
    ) -> Iterator[tuple[LengthBatch, list[Array]]]:
        """What `function` computes of each batch. `of_tokens` is `[example, ..., pos]`, and goes with the tokens."""
        done, names = 0, tuple(self.widths)
        with placed(self.place, rules_for) as there:
            model = there.frozen(self.model, () if self.place is None else rules_for(self.model))
            batch_at = there.batches(lambda number: self._inputs(self.some[number], of_tokens))
            for number, some in enumerate(self.some):
                yield some, function(names, model, *batch_at(number))
                done += len(some.rows)
                on_batch(done, len(self.data))

    def _inputs(self, some: LengthBatch, of_tokens: np.ndarray) -> tuple[Any, Any, Any]:
        mask = self.data.mask[some.filled, : some.length] if self.masked else None
        return self.data.tokens[some.filled, : some.length], mask, of_tokens[some.filled][..., : some.length]


def mesh_of_leaves(tree: Any) -> Mesh | None:
    """The mesh that the leaves of a pytree are on. None if they are on one device."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.size > 1:
            return sharding.mesh
    return None


def wide_values(names: tuple[str, ...], model: Model, tokens: Array, mask: Array | None) -> list[Array]:
    """The values of single layers as `[batch, pos, width]` in float32, from one forward pass."""
    inputs = {} if mask is None else {"mask": mask}
    found = values_at(model, *names)(tokens, **inputs)
    return [upcast(found[name]).astype(jnp.float32).reshape(*tokens.shape, -1) for name in names]


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
