"""The choice of one direction among candidates by three effects of it: ablated, ablated on neutral prompts, and added.

candidates = find_directions(model, train, sites="blocks.*.resid_pre", rules=[Nth(-1), Nth(-2)])
chosen = select_direction(model, candidates, held_out, answers=[refusal_id])
chosen.table                                    all candidates with their scores
edit(model, *chosen.ablation())                 the model without the direction

Arditi et al. 2024 (arXiv:2406.11717) choose the refusal direction so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.objectives import kl_divergence, log_probabilities
from jax_interp.core.processes import to_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.sharding import rules_for
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.length_batches import length_batches
from jax_interp.probes.text_reader import mesh_of_leaves
from jax_interp.steering.finding.directions import Directions
from jax_interp.steering.vector import SteeringVector
from jax_interp.surgery import Add, Address, Edit, Model, ProjectOut, at, depth_of, edit, sites
from jax_interp.surgery.verbs import flat_edits
from jax_interp.training.meshes import row_shards
from jax_interp.training.placement import automatic, placed

WRITTEN = ("resid_pre", "attn_out", "mlp_out")
"""Where a direction is ablated: the input of each block, and what attention and the MLP add to the residual stream."""
FLOOR = 1e-8
"""What is added to both probabilities of a score, so that it is finite."""


@dataclasses.dataclass(frozen=True)
class Criteria:
    """What a candidate must fulfil.

    Args:
      kl: the largest mean KL divergence, in nats, that ablation may cause on neutral prompts.
      induced: the least score of neutral prompts to which the direction is added.
      depth: the share of the blocks, from the first one on, before which a candidate must be found.
    """

    kl: float = 0.1
    induced: float = 0.0
    depth: float = 0.8

    def __post_init__(self) -> None:
        if not self.kl >= 0 or not 0 < self.depth <= 1:
            raise UserError(f"kl={self.kl} must be at least 0, and depth={self.depth} between 0 and 1")


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """One candidate and its scores. A score is log p(answers) - log p(other tokens) of the next token, in nats.

    Args:
      site: the address where it was found.
      rule: the tokens where it was found.
      layer: the number of blocks before the site.
      ablated: the mean score of prompts of the positive class without the direction. Low is good.
      kl: the mean KL divergence of the next token of neutral prompts, from the model to the one without the direction.
      induced: the mean score of neutral prompts to which the direction is added at its site. High is good.
      fails: the criterion that it does not fulfil. "": it passes.
    """

    site: str
    rule: str
    layer: int
    ablated: float
    kl: float
    induced: float
    fails: str


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """All candidates, and the one that was chosen: of those that pass, the one with the least `ablated`.

    Args:
      table: all candidates.
      chosen: the number of the chosen one.
      direction: its direction.
      ablated_at: the addresses at which a direction is ablated.
      positive: the mean score of prompts of the positive class in the model as it is.
      neutral: the mean score of neutral prompts in the model as it is.
    """

    table: tuple[Candidate, ...]
    chosen: int
    direction: Float[np.ndarray, " d"]
    ablated_at: tuple[str, ...]
    positive: float
    neutral: float

    @property
    def candidate(self) -> Candidate:
        """The chosen candidate."""
        return self.table[self.chosen]

    @property
    def skipped(self) -> int:
        """The number of candidates of which a score is NaN."""
        return sum(candidate.fails == NAN for candidate in self.table)

    def vector(self) -> SteeringVector:
        """The chosen direction at the site where it was found."""
        return SteeringVector({self.candidate.site: jnp.asarray(self.direction, jnp.float32)})

    def ablation(self) -> tuple[Edit, ...]:
        """The edits that remove the chosen direction from all layers, at all tokens."""
        return _ablation(jnp.asarray(self.direction, jnp.float32), self.ablated_at)


NAN = "not a number"


def select_direction(
    model: Model,
    candidates: Directions,
    prompts: LabelledTokens,
    answers: Sequence[int],
    *,
    criteria: Criteria = Criteria(),
    batch: int = 32,
    at_once: int = 4,
    place: Mesh | None = None,
) -> Selection:
    """Choose a direction by its effects on held-out prompts.

    The candidates are data of one compiled program, in which `at_once` of them are scored side by side.

    Args:
      model: a `Decoder`, with or without edits.
      candidates: directions of one method at `resid_pre` or `resid_post` of some layers, for one or several rules. They
        point to the positive class.
      prompts: prompts of two classes; the second one is the positive class (such as harmful), and the first one is
        neutral (harmless). They should not be those that the candidates were found on.
      answers: the token ids that begin an answer of the positive class, such as a refusal.
      criteria: what a candidate must fulfil.
      batch: the number of prompts in one forward pass, for each candidate.
      at_once: the number of candidates side by side. More of them need as many times the memory.
      place: a mesh, as in `probes.gather`.

    Raises:
      UserError: no candidate passes; or the candidates have several methods or other sites, the prompts are not of two
        classes, or an answer is outside the vocabulary.
    """
    layers, own = _checked(model, candidates, prompts, answers)
    vectors = candidates.vectors[:, :, 0].reshape(-1, candidates.vectors.shape[-1])
    rows = [(site, rule) for site in range(len(own)) for rule in range(len(candidates.rules))]
    where = (candidates.sites[0].rpartition(".")[2], _written(model))
    added_at = jnp.asarray([own[site] for site, _ in rows], jnp.int32)
    scored = _Scored(jnp.asarray(vectors), added_at, jnp.asarray(answers, jnp.int32))
    place = mesh_of_leaves(model) if place is None else place
    found = _effects(model, prompts, scored, where, batch, at_once, place)
    depth = depth_of(model)
    table = []
    for number, (site, rule) in enumerate(rows):
        ablated, kl, induced = (float(found[name][number]) for name in ("ablated", "kl", "induced"))
        made = Candidate(candidates.sites[site], str(candidates.rules[rule]), layers[site], ablated, kl, induced, "")
        table.append(dataclasses.replace(made, fails=_fails(made, criteria, depth)))
    passing = [number for number, candidate in enumerate(table) if not candidate.fails]
    if not passing:
        raise UserError(_none_passes(table, criteria, depth))
    chosen = min(passing, key=lambda number: table[number].ablated)
    positive, neutral = (float(found[name]) for name in ("positive", "neutral"))
    return Selection(tuple(table), chosen, vectors[chosen], where[1], positive, neutral)


def _checked(
    model: Model, candidates: Directions, prompts: LabelledTokens, answers: Sequence[int]
) -> tuple[list[int], list[int]]:
    """(The number of blocks before each site, the layer of each site)."""
    if len(candidates.methods) != 1:
        raise UserError(f"the candidates are of {len(candidates.methods)} methods: find them with one method")
    parsed = [Address.parse(site) for site in candidates.sites]
    names = {address.name for address in parsed}
    if len(names) != 1 or not names <= {"resid_pre", "resid_post"}:
        raise UserError(f"candidates are found at resid_pre or at resid_post, not at {', '.join(sorted(names))}")
    if sorted(prompts.counts().values())[:1] == [0] or len(prompts.classes) != 2:
        raise UserError(f"{prompts.name} needs prompts of two classes, and has {prompts.counts()}")
    vocab = model.config.vocab_size  # pyright: ignore[reportAttributeAccessIssue]
    if not len(answers) or not all(0 <= token < vocab for token in answers) or len(set(answers)) < len(answers):
        raise UserError(f"answers={list(answers)}: give different token ids between 0 and {vocab - 1}")
    if (check := getattr(model, "check_inputs", None)) is not None:
        check(prompts.tokens, mask=prompts.mask)
    layers = [int(site.split(".")[1]) for site in candidates.sites]
    after = next(iter(names)) == "resid_post"
    return [layer + after for layer in layers], layers


def _fails(candidate: Candidate, criteria: Criteria, depth: int) -> str:
    if np.isnan([candidate.ablated, candidate.kl, candidate.induced]).any():
        return NAN
    if candidate.layer >= int(criteria.depth * depth):
        return "depth"
    if candidate.kl > criteria.kl:
        return "kl"
    return "induced" if candidate.induced < criteria.induced else ""


def _none_passes(table: Sequence[Candidate], criteria: Criteria, depth: int) -> str:
    count = lambda name: sum(candidate.fails == name for candidate in table)
    finite = [candidate for candidate in table if candidate.fails != NAN]
    least, most = (f([getattr(c, n) for c in finite], default=np.nan) for f, n in ((min, "kl"), (max, "induced")))
    return (
        f"none of {len(table)} candidates passes: {count('depth')} are after the first {criteria.depth:.0%} of {depth} "
        f"blocks; {count('kl')} of the others change neutral prompts by more than {criteria.kl} nats (the least KL of "
        f"all is {least:.3g}); {count('induced')} of the rest have an induced score below {criteria.induced} (the "
        f"largest of all is {most:.3g}); {count(NAN)} have a score that is not a number. Give other sites or rules, or "
        "other criteria"
    )


Where = tuple[str, tuple[str, ...]]
"""The name of the value to which directions are added, and the addresses at which they are ablated."""


def _written(model: Model) -> tuple[str, ...]:
    """The addresses of `WRITTEN` that the model has: a model without MLPs has no `mlp_out`."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    names = {address.rpartition(".")[2] for address in sites(model)(one) if address.startswith("blocks.")}
    return tuple(f"blocks.*.{name}" for name in WRITTEN if name in names)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Scored:
    """The candidates: their vectors and the layers at which they are added; and the tokens that begin an answer."""

    vectors: Float[Array, "candidate d"]
    layers: Int[Array, " candidate"]
    answers: Int[Array, " answer"]


def _effects(
    model: Model,
    prompts: LabelledTokens,
    scored: _Scored,
    where: Where,
    batch: int,
    at_once: int,
    place: Mesh | None,
) -> dict[str, np.ndarray]:
    """The mean effects over the prompts: "ablated", "kl" and "induced" `[candidate]`, "positive" and "neutral" `[]`."""
    sums: dict[str, Any] = {}
    with placed(place, rules_for) as there:
        model = there.frozen(model, () if place is None else rules_for(model))
        ways = 1 if place is None else row_shards(place)
        for label, function in ((1, _of_positive), (0, _of_neutral)):
            data = prompts.take(prompts.labels == label)
            for some in length_batches(data.mask, batch, multiple=ways):
                counts = (np.arange(len(some.filled)) < len(some.rows)).astype(np.float32)
                rows = (data.tokens[some.filled, : some.length], data.mask[some.filled, : some.length], counts)
                inputs = there.batches(lambda _, rows=rows: rows)(0)
                found = to_host(function(where, at_once, model, scored, *inputs))
                for key, value in found.items():
                    sums[key] = sums.get(key, 0.0) + value.astype(np.float64) / len(data)
    return sums


def _ablation(direction: Float[Array, " d"], addresses: tuple[str, ...]) -> tuple[Edit, ...]:
    return tuple(flat_edits(at(address, ProjectOut(direction)) for address in addresses))


def _last(model: Model, tokens: Array, mask: Array) -> Float[Array, "row vocab"]:
    """The log probabilities of the token after each prompt."""
    return log_probabilities(upcast(model(tokens, mask=mask, last_only=True)[:, 0]))


def _score(log_p: Float[Array, "row vocab"], answers: Int[Array, " answer"]) -> Float[Array, " row"]:
    """log(Σ p + 1e-8) - log(1 - Σ p + 1e-8), where Σ p is the probability of the answers."""
    chosen = jnp.zeros(log_p.shape[-1], bool).at[answers].set(True)
    sides = [jax.nn.logsumexp(jnp.where(which[None, :], log_p, -jnp.inf), axis=-1) for which in (chosen, ~chosen)]
    floor = jnp.log(jnp.asarray(FLOOR, log_p.dtype))
    return jnp.logaddexp(sides[0], floor) - jnp.logaddexp(sides[1], floor)


@partial(jax.jit, static_argnums=(0, 1))
@automatic
def _of_positive(where: Where, at_once: int, model: Model, scored: _Scored, *rows: Array) -> dict[str, Array]:
    """Sums over prompts of the positive class: with each direction ablated, and as they are."""
    tokens, mask, counts = rows

    def ablated(vector: Array) -> Array:
        return jnp.sum(counts * _score(_last(edit(model, *_ablation(vector, where[1])), tokens, mask), scored.answers))

    return {
        "ablated": jax.lax.map(ablated, scored.vectors, batch_size=at_once),
        "positive": jnp.sum(counts * _score(_last(model, tokens, mask), scored.answers)),
    }


@partial(jax.jit, static_argnums=(0, 1))
@automatic
def _of_neutral(where: Where, at_once: int, model: Model, scored: _Scored, *rows: Array) -> dict[str, Array]:
    """Sums over neutral prompts: the KL of ablation, the score with each direction added, and the score as they are."""
    tokens, mask, counts = rows
    before = _last(model, tokens, mask)

    def effects(candidate: tuple[Array, Array]) -> tuple[Array, Array]:
        vector, layer = candidate
        without = _last(edit(model, *_ablation(vector, where[1])), tokens, mask)
        added = _last(edit(model, at(f"blocks.{where[0]}", Add(vector), layer=layer)), tokens, mask)
        return jnp.sum(counts * kl_divergence(before, without)), jnp.sum(counts * _score(added, scored.answers))

    kl, induced = jax.lax.map(effects, (scored.vectors, scored.layers), batch_size=at_once)
    return {"kl": kl, "induced": induced, "neutral": jnp.sum(counts * _score(before, scored.answers))}
