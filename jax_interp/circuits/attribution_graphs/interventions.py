"""Change features, errors and token embeddings of a prompt, and see what follows.

    effect = intervene(local, tokens, [Change(Feature(3, 5, 17), factor=0.0)])
    effect.logits - effect.clean_logits

`how` says what may respond:

    "direct"             nothing: attention patterns, norm scales and MLP outputs keep the values of the clean run,
                         apart from the linear skips. This is the linear model in which edges are exact.
    "frozen attention"   norms and MLPs respond, attention patterns do not
    "free"               everything responds

`changed_model` is the last one as a model: it can be read, edited, called on other prompts and used in generation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.circuits.attribution_graphs.clean_run import CleanRun, clean_run
from jax_interp.circuits.attribution_graphs.linear import frozen_values, without_softcap
from jax_interp.circuits.attribution_graphs.nodes import Error, Feature, Logit, Source, Token
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.forms.cross_layer import Source as DictionarySource
from jax_interp.dictionaries.replacement import Replacement
from jax_interp.surgery import Add, Each, Edit, Freeze, Scale, ScopedEdit, Site, at, edit, read, replan
from jax_interp.surgery.address import Address
from jax_interp.surgery.taps import Tapped, static
from jax_interp.surgery.value_tokens import wide

How = Literal["direct", "frozen attention", "free"]


@dataclasses.dataclass(frozen=True)
class Change:
    """What happens to a node. Give `value` or `factor`.

    Args:
      node: a feature, an error or a token.
      value: the new activation of a feature, which need not be active.
      factor: the node times this factor: 0 removes it, 1 changes nothing.
    """

    node: Source
    value: float | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.factor is None):
            raise UserError(f"a change of {self.node} needs either value= or factor=")
        if self.value is not None and not isinstance(self.node, Feature):
            raise UserError(f"{self.node} has no activation: give factor=")
        if not np.isfinite([one for one in (self.value, self.factor) if one is not None]).all():
            raise UserError(f"the change of {self.node} is not finite")


def scaled(nodes: Sequence[Source], factor: float) -> list[Change]:
    """The same factor for all nodes of a group (a supernode)."""
    return [Change(node, factor=factor) for node in nodes]


@dataclasses.dataclass(frozen=True, eq=False)
class Effect:
    """What an intervention does.

    Attributes:
      clean_logits, logits: the logits of the last position before and after. With how="direct" they have no softcap,
        because the linear model has none.
      clean_reads, reads: the values that the sources of the dictionary read, before and after.
      dictionary: the dictionary.
    """

    clean_logits: Float[Array, " vocab"]
    logits: Float[Array, " vocab"]
    clean_reads: Float[Array, "layer pos d_in"]
    reads: Float[Array, "layer pos d_in"]
    dictionary: CrossLayer

    def on(self, nodes: Sequence[Feature | Logit]) -> tuple[Float[np.ndarray, " target"], Float[np.ndarray, " target"]]:
        """The targets before and after: pre-activations of features, and logits minus the mean logit."""
        return self._targets(nodes, self.clean_reads, self.clean_logits), self._targets(nodes, self.reads, self.logits)

    def _targets(self, nodes: Sequence[Feature | Logit], reads: Array, logits: Array) -> Float[np.ndarray, " target"]:
        centred, found = np.asarray(logits - jnp.mean(logits)), np.zeros(len(nodes), logits.dtype)
        for layer, source in enumerate(self.dictionary.sources):
            here = [i for i, n in enumerate(nodes) if isinstance(n, Feature) and n.layer == layer]
            pos, feature = (np.asarray([getattr(nodes[i], name) for i in here], int) for name in ("pos", "feature"))
            x = reads[layer, pos].astype(source.W_enc.dtype)
            found[here] = jnp.sum(x * source.W_enc[:, feature].T, axis=1) + source.b_enc[feature]
        for i, node in enumerate(nodes):
            if isinstance(node, Logit):
                found[i] = centred[node.token]
        return found

    def activations(self) -> Float[Array, "layer pos feature"]:
        """The activations of all features after the intervention, dense."""
        return self.dictionary.encode(self.reads)


def intervene(
    local: Replacement,
    tokens: Int[Array | np.ndarray, " pos"],
    changes: Sequence[Change],
    *,
    how: How = "direct",
) -> Effect:
    """Run a prompt with changed nodes.

    Args:
      local: the model and its dictionary, as `replacement` returns them.
      tokens: one prompt.
      changes: what is changed.
      how: what responds to the changes.

    Returns:
      Logits and read values before and after.

    Raises:
      UserError: a node does not exist or is changed twice, or `how` is not known.
    """
    if how not in ("direct", "frozen attention", "free"):
        raise UserError(f"how={how!r}: choose direct, frozen attention or free")
    clean = clean_run(local, tokens)
    absolute = _absolute(local, clean, changes)
    local = dataclasses.replace(local, model=replan(cast(Any, local.model), "*"))  # each layer has edits of its own
    frozen: tuple[str, ...] = () if how == "free" else frozen_values(local, clean.tokens[None])
    if how == "frozen attention":
        frozen = tuple(one for one in frozen if one.endswith("pattern"))
    if how == "direct":
        local = dataclasses.replace(local, model=without_softcap(local.model))
    responds = how != "direct"
    held = {node: value for node, value in absolute.items() if not responds or not isinstance(node, Feature)}
    factors = np.ones((len(clean.tokens), 1))
    for node, value in absolute.items():
        if isinstance(node, Token):
            factors[node.pos] = value
    edits = [at("embed", Scale(jnp.asarray(factors, clean.errors.dtype)))]
    if responds:
        edits += _feature_edits(local, [(n, v) for n, v in absolute.items() if isinstance(n, Feature)])
    (clean_logits, before), (logits, after) = _run(
        local, clean.tokens[None], _deltas(local, clean, held), edits, frozen=frozen, responds=responds
    )
    return Effect(clean_logits, logits, before, after, local.dictionary)


@partial(jax.jit, static_argnames=("frozen", "responds"))
def _run(
    local: Replacement, tokens: Array, deltas: Array, edits: list[Edit], *, frozen: tuple[str, ...], responds: bool
) -> Any:
    """((logits, values read), (logits, values read)): without and with the changes."""
    names = dict.fromkeys((*local.reads, *local.writes, *frozen))
    logits, acts = read(local.model, *names)(tokens)
    held = [_frozen(name, acts[name]) for name in frozen]
    for i, (reads, writes, source) in enumerate(zip(local.reads, local.writes, local.dictionary.sources, strict=True)):
        if responds:
            held.append(at(writes, Add(deltas[i].reshape(acts[writes].shape))))
        else:
            held.append(at(reads, _Carry(f"direct.{i}")))
            held.append(at(writes, _Direct(acts[writes], deltas[i], acts[reads], source.W_skip, f"direct.{i}")))
    changed, after = read(edit(local.model, *held, *edits), *local.reads)(tokens)
    stack = lambda acts: jnp.stack([_rows(acts[one]) for one in local.reads])
    return (upcast(logits[0, -1]), stack(acts)), (upcast(changed[0, -1]), stack(after))


def changed_model(local: Replacement, changes: Sequence[Change], *, everywhere: bool = False) -> Tapped:
    """The model in which features have other activations and everything responds.

    The difference between the new activation and the one that the feature has in the same run, times its decoder, is
    added to what the MLP writes. All features need a `value`, because a model runs any prompt.

    Args:
      local: the model and its dictionary.
      changes: changes of features.
      everywhere: act on every position, in generation also on new tokens, instead of the positions of the nodes.

    Returns:
      A model under surgery, for `call`, `read` and `generate`.
    """
    features = []
    for change in changes:
        if not isinstance(change.node, Feature) or change.value is None:
            raise UserError(f"{change.node}: a changed model takes features, with the new activation as value=")
        _check_feature(local, change.node)
        features.append((change.node, float(change.value)))
    _check_once([node for node, _ in features] if not everywhere else [(n.layer, n.feature) for n, _ in features])
    return edit(local.model, *_feature_edits(local, features, everywhere=everywhere))


def _absolute(local: Replacement, clean: CleanRun, changes: Sequence[Change]) -> dict[Source, float]:
    """The new activation of each feature, and the factor of each error and token."""
    _check_once([change.node for change in changes])
    n, found = len(clean.tokens), {}
    for change in changes:
        node = change.node
        if isinstance(node, Feature):
            _check_feature(local, node)
        if not isinstance(node, (Feature, Error, Token)):
            raise UserError(f"{node} is no source: change features, errors and tokens")
        layers = len(local.reads)
        if not 0 <= node.pos < n or not (isinstance(node, Token) or 0 <= node.layer < layers):
            raise UserError(f"{node} does not exist: there are {layers} layers and the positions 0 to {n - 1}")
        if isinstance(node, Feature) and change.factor is not None:
            active = clean.active.find(node.layer, node.pos, node.feature)
            found[node] = change.factor * float(clean.active.activation[active])
        else:
            found[node] = float(change.value if change.value is not None else change.factor)  # type: ignore[arg-type]
    return found


def _check_feature(local: Replacement, node: Feature) -> None:
    sources = local.dictionary.sources
    if not 0 <= node.layer < len(sources) or not 0 <= node.feature < sources[node.layer].W_enc.shape[1]:
        raise UserError(
            f"{node} does not exist: the dictionary has {len(sources)} layers of {sources[0].W_enc.shape[1]} features"
        )


def _check_once(nodes: Sequence[Any]) -> None:
    if twice := [node for node in nodes if nodes.count(node) > 1]:
        raise UserError(f"{twice[0]} is changed twice")


def _deltas(local: Replacement, clean: CleanRun, changes: dict[Source, float]) -> Float[Array, "layer pos d_out"]:
    """What the changes of features and errors add to each written value, if nothing responds."""
    deltas = jnp.zeros_like(clean.errors)
    activations = {
        Feature(int(a), int(b), int(c)): float(z)
        for a, b, c, z in zip(clean.active.layer, clean.active.pos, clean.active.feature, clean.active.activation)
        if Feature(int(a), int(b), int(c)) in changes
    }
    for node, value in changes.items():
        if isinstance(node, Error):
            deltas = deltas.at[node.layer, node.pos].add((value - 1) * clean.errors[node.layer, node.pos])
        elif isinstance(node, Feature):
            W_dec = local.dictionary.sources[node.layer].W_dec[node.feature].astype(deltas.dtype)
            more = (value - activations.get(node, 0.0)) * W_dec
            deltas = deltas.at[node.layer : node.layer + len(W_dec), node.pos].add(more)
    return deltas


def _frozen(name: str, values: Array) -> Any:
    return at(name, Freeze(values) if Address.parse(name).is_single else Each(Freeze(values)))


def _rows(value: Array) -> Float[Array, "pos d"]:
    return upcast(value[0]).reshape(value.shape[1], -1)


def _feature_edits(local: Replacement, features: Sequence[tuple[Feature, float]], *, everywhere: bool = False) -> list:
    """Edits that hold features at activations, in the run in which they are computed."""
    edits = []
    for layer in sorted({node.layer for node, _ in features}):
        source, name = local.dictionary.sources[layer], f"features.{layer}"
        here = [(node, value) for node, value in features if node.layer == layer]
        edits.append(at(local.reads[layer], _Latents(source, jnp.asarray([n.feature for n, _ in here]), name)))
        for j in range(source.W_dec.shape[1]):
            for i, (node, value) in enumerate(here):
                shift = _Shift(jnp.asarray(value), source.W_dec[node.feature, j], i, name)
                edits.append(at(local.writes[layer + j], shift, pos=None if everywhere else node.pos))
    return edits


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Carry(ScopedEdit):
    """Carry the value on. It does not change."""

    name: str = static()

    def __call__(self, x: Array, site: Site) -> Array:
        site.carry(self.name, x)
        return x


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Direct(ScopedEdit):
    """The written value of the clean run, plus what the changes add, plus the skip of what the read value changed."""

    clean: Float[Array, "1 pos d_out"]
    delta: Float[Array, "pos d_out"]
    clean_read: Float[Array, "1 pos d_in"]
    W_skip: Float[Array, "d_in d_out"] | None
    name: str = static()

    def __call__(self, y: Array, site: Site) -> Array:
        out = wide(self.clean) + self.delta[None].astype(wide(self.clean).dtype).reshape(y.shape)
        x = site.carried(self.name)
        if self.W_skip is not None:
            moved = (wide(x) - wide(self.clean_read)).reshape(-1, x.shape[-1]).astype(self.W_skip.dtype)
            out = out + (moved @ self.W_skip).reshape(y.shape).astype(out.dtype)
        return out


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Latents(ScopedEdit):
    """Carry the latents of some features on. The value does not change."""

    source: DictionarySource
    features: Int[Array, " feature"]
    name: str = static()

    def __call__(self, x: Array, site: Site) -> Array:
        site.carry(self.name, self.source.encode(x)[..., self.features])
        return x


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Shift(ScopedEdit):
    """Add (new activation - activation) * decoder of one feature."""

    value: Float[Array, ""]
    decoder: Float[Array, " d_out"]
    index: int = static()
    name: str = static()

    def __call__(self, y: Array, site: Site) -> Array:
        z = site.carried(self.name)[..., self.index].astype(wide(y).dtype)
        more = (self.value.astype(z.dtype) - z)[..., None] * jnp.expand_dims(self.decoder.astype(z.dtype), (0, 1))
        return wide(y) + more.reshape(y.shape)
