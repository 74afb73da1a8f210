"""The linear model of one prompt: attention patterns, norm scales and MLP outputs are constants.

In it, the value that each dictionary reads and the logits are affine in the token embeddings and in everything that is
written at the dictionary's targets. So the derivative of a target's pre-activation times what a source writes is the
exact effect of that source (Ameisen et al. 2025, "Circuit Tracing", section on attribution graphs).

The rows of the graph are computed by `rows_of_features` and `rows_of_logits`: one backward pass for a batch of targets,
mapped over the batch. Nothing is perturbed in the forward pass; sources and targets act in the backward pass only
(backward.py). The cotangent is multiplied with the decoders of the active features layer by layer, so neither the
cotangents of all layers nor the decoders of all active features are in memory at once. Blocks are rematerialised: the
attention pattern of one layer is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.attribution_graphs.backward import (
    Packed,
    error_source,
    feature_source,
    linked,
    pack,
    target_at,
    token_source,
)
from jax_interp.circuits.attribution_graphs.clean_run import CleanRun
from jax_interp.core.errors import UserError
from jax_interp.core.layer import at_least_float32, upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.replacement import Replacement
from jax_interp.surgery import Each, ScopedEdit, Site, at, depth_of, edit, sites, values_at
from jax_interp.surgery.address import Address
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import Wrapper, static


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """A batch of features whose rows are computed: for each its layer, position and index."""

    layer: Int[Array, " target"]
    pos: Int[Array, " target"]
    feature: Int[Array, " target"]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LinearModel:
    """What the compiled programs need. `linear_model` makes it.

    Attributes:
      model: the model, without a softcap of its logits.
      dictionary: the dictionary. If `stretch` is set, one source whose arrays have an axis for the layer.
      packed: the active features of each source; if `stretch` is set, one with an axis for the layer.
      place: where in the flattened `packed` each active feature is.
      frozen: the addresses of the values that are constants.
      stretch: (address of all values read, address of all values written), if they are in one scan.
    """

    model: Model
    dictionary: CrossLayer
    packed: tuple[Packed, ...]
    place: Int[Array, " active"]
    errors: Float[Array, "layer pos d_out"]
    tokens: Int[Array, "1 pos"]
    reads: tuple[str, ...] = static()
    writes: tuple[str, ...] = static()
    frozen: tuple[str, ...] = static()
    stretch: tuple[str, str] | None = static()


def linear_model(local: Replacement, clean: CleanRun, frozen: tuple[str, ...] | None = None) -> LinearModel:
    """Prepare the linear model of a prompt.

    Args:
      local: the model and its dictionary.
      clean: the clean run.
      frozen: the addresses of the values that are constants. None: all attention patterns and norm scales.
    """
    tokens, dictionary = clean.tokens[None], local.dictionary
    frozen = frozen_values(local, tokens) if frozen is None else frozen
    packed, place = pack(clean.active, len(local.reads), alike=local.stretch is not None)
    if local.stretch is not None:
        source = jax.tree.map(lambda *leaves: jnp.stack(leaves), *dictionary.sources)
        dictionary = CrossLayer((source,), dictionary.b_dec[:, None])
        packed = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *packed),)
    model = without_softcap(local.model)
    return LinearModel(
        model, dictionary, packed, place, clean.errors, tokens, local.reads, local.writes, frozen, local.stretch
    )


def frozen_values(local: Replacement, tokens: Int[Array, "1 pos"]) -> tuple[str, ...]:
    """The addresses of all attention patterns and norm scales of a model.

    Raises UserError if an MLP has no dictionary: the model would not be linear.
    """
    depth, of_blocks, found = depth_of(local.model), {}, []
    named = list(sites(local.model)(tokens))
    missing = sorted(one for one in named if one.endswith(".mlp_out") and one not in local.writes)
    if any(one.endswith(".mlp_out") for one in local.writes) and missing:
        raise UserError(f"{missing[0]} has no dictionary: an attribution graph needs one for every MLP of the model")
    for one in named:
        address = Address.parse(one)
        if address.name.split(".")[-1] not in ("scale", "pattern"):
            continue
        layers = address.resolve(depth)
        if layers is None:
            found.append(one)
        else:
            of_blocks.setdefault(address.name, []).extend(layers)
    for name, layers in of_blocks.items():
        whole = sorted(layers) == list(range(depth))
        found += [f"blocks.*.{name}"] if whole else [f"blocks.{layer}.{name}" for layer in layers]
    return tuple(found)


def without_softcap(model: Model) -> Model:
    """The model whose logits are linear in the output of the final norm: a decoder without its softcap."""
    if isinstance(model, Wrapper):
        return dataclasses.replace(model, model=without_softcap(model.model))  # type: ignore[type-var]
    config = getattr(model, "config", None)
    if not getattr(config, "logit_softcap", 0.0):
        return model
    plain = jax.tree.map(lambda leaf: leaf, model)
    plain.config = dataclasses.replace(config, logit_softcap=0.0)  # type: ignore[union-attr, attr-defined]
    return plain


@partial(jax.jit, static_argnames="stop")
def rows_of_features(linear: LinearModel, targets: Targets, *, stop: int) -> Float[Array, "target source"]:
    """The effect of every source on the pre-activation of each target.

    Args:
      linear: the linear model.
      targets: the targets. Their layers are at most `stop`.
      stop: the last source whose input is needed. The model is not run beyond it.

    Returns:
      For each target the weights of its edges: from active features, errors [layer, pos] and tokens, in this order.
    """
    address = linear.reads[stop]

    def row(target: Targets) -> Array:
        def value(alphas: Any) -> Array:
            changed = edit(linear.model, *_edits(linear, alphas, target))
            return values_at(changed, address)(linear.tokens, **_options(linear.model))[address]

        out, pull = jax.vjp(value, _zeros(linear))
        return _flat(linear, pull(jnp.zeros_like(out))[0])

    return jax.vmap(row)(targets)


@jax.jit
def rows_of_logits(
    linear: LinearModel, ids: Int[Array, " target"]
) -> tuple[Float[Array, " target"], Float[Array, "target source"]]:
    """(logits of the last position, each minus the mean over the vocabulary; the effect of every source on them).

    The logits have no softcap.
    """
    nowhere = jnp.zeros((), jnp.int32)
    target = Targets(nowhere - 1, nowhere, nowhere)

    def logits(alphas: Any) -> Array:
        changed = edit(linear.model, *_edits(linear, alphas, target))
        return changed(linear.tokens, **_options(linear.model, last_only=True))[0, -1]

    out, pull = jax.vjp(logits, _zeros(linear))
    vocab = out.shape[0]
    directions = jax.nn.one_hot(ids, vocab, dtype=out.dtype) - jnp.asarray(1 / vocab, out.dtype)
    return upcast(out)[ids] - jnp.mean(upcast(out)), jax.vmap(lambda g: _flat(linear, pull(g)[0]))(directions)


def _options(model: Model, **wanted: Any) -> dict[str, Any]:
    """`remat=True` and what else is wanted, as far as the model has these options."""
    while isinstance(model, Wrapper):
        model = model.model
    known = inspect.signature(type(model).__call__).parameters
    return {name: value for name, value in {"remat": True, **wanted}.items() if name in known}


def _zeros(linear: LinearModel) -> dict[str, Any]:
    """One coefficient for each source. Its derivative is the weight of the edge."""
    dtype = at_least_float32(linear.errors.dtype)
    zeros = lambda *shape: jnp.zeros(shape, dtype)
    features = [zeros(*one.feature.shape) for one in linear.packed]
    return {
        "features": tuple(features),
        "errors": zeros(*linear.errors.shape[:2]),
        "tokens": zeros(linear.tokens.shape[1]),
    }


def _flat(linear: LinearModel, alphas: dict[str, Any]) -> Float[Array, " source"]:
    features = jnp.concatenate([one.reshape(-1) for one in alphas["features"]])[linear.place]
    return jnp.concatenate([features, alphas["errors"].reshape(-1), alphas["tokens"]])


def _edits(linear: LinearModel, alphas: dict[str, Any], target: Targets) -> list[Any]:
    edits: list[Any] = [at(list(linear.frozen), _StopGradient()), at("embed", _Tokens(alphas["tokens"]))]
    n, sources = len(linear.reads), linear.dictionary.sources
    here = jnp.arange(n, dtype=jnp.int32) == target.layer
    if linear.stretch is not None:
        (source,), reads, writes = sources, *linear.stretch
        probe = _Encoder(source.W_enc, here, target.pos, target.feature, "graph")
        parts = (_Part(alphas["features"][0], linear.packed[0], source.W_dec[:, :, 0]),)
        write = _Decoders(parts, alphas["errors"], linear.errors, source.W_skip, "graph")
        return [*edits, at(reads, Each(probe)), at(writes, Each(write))]
    for i, source in enumerate(sources):
        name = f"graph.{i}"
        probe = _Encoder(source.W_enc, here[i], target.pos, target.feature, name)
        parts = tuple(
            _Part(alphas["features"][j], linear.packed[j], sources[j].W_dec[:, i - j])
            for j in range(i + 1)
            if i - j < sources[j].W_dec.shape[1] and linear.packed[j].feature.size
        )
        write = _Decoders(parts, alphas["errors"][i], linear.errors[i], source.W_skip, name)
        edits += [at(linear.reads[i], probe), at(linear.writes[i], write)]
    return edits


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _StopGradient:
    def __call__(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Tokens:
    """The sources at the embedding: the embedding of each token."""

    alpha: Float[Array, " pos"]

    def __call__(self, x: Array) -> Array:
        return token_source(x, self.alpha)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Encoder(ScopedEdit):
    """The target, if it is of this layer. The value is carried to where this layer writes."""

    W_enc: Float[Array, "d_in feature"]
    here: Bool[Array, ""]
    pos: Int[Array, ""]
    feature: Int[Array, ""]
    name: str = static()

    def __call__(self, x: Array, site: Site) -> Array:
        x = target_at(x, self.W_enc, self.here, self.pos, self.feature)
        site.carry(self.name, x)
        return x


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """Features of one source that write here: their coefficients, and the decoders [feature, d_out]."""

    alpha: Float[Array, "row slot"]
    packed: Packed
    W_dec: Float[Array, "feature d_out"]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Decoders(ScopedEdit):
    """The sources at a written value. The value is a constant, apart from the linear skip."""

    parts: tuple[_Part, ...]
    error_alpha: Float[Array, " pos"]
    errors: Float[Array, "pos d_out"]
    W_skip: Float[Array, "d_in d_out"] | None
    name: str = static()

    def __call__(self, y: Array, site: Site) -> Array:
        x = site.carried(self.name)
        y = linked(jax.lax.stop_gradient(y), x)
        if self.W_skip is not None:
            skip = (x.astype(self.W_skip.dtype).reshape(-1, x.shape[-1]) @ self.W_skip).reshape(y.shape)
            y = y + (skip - jax.lax.stop_gradient(skip)).astype(y.dtype)
        for part in self.parts:
            y = feature_source(y, part.alpha, part.packed, part.W_dec)
        return error_source(y, self.error_alpha, self.errors)
