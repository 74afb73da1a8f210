"""Conditions that act together, found one after the other.

A conjunction fires only if all of its conditions hold. Each round ranks latents on the prompts as they are, reads the
token that each of the best ones fires on, and puts into all prompts the token after which the target is likeliest. The
next round looks for what is still missing. (Qin et al. 2025 search conjunctions in this way.)
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.steering.backdoors.audit import AuditTexts, audit_losses
from jax_interp.steering.backdoors.latent_tokens import latent_tokens
from jax_interp.steering.backdoors.method import Ranking, Suspect, TriggerMethod, ranked
from jax_interp.steering.backdoors.methods.token_scan import loss_drops


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition.

    Args:
      latent: the latent that was ranked high.
      token: a token that it fires on, which is now in all prompts.
      place: the place of the latent in the ranking of its round; 0 is the best.
      loss: the mean loss of the target with this condition and all earlier ones, in nats per token.
    """

    latent: int
    token: int
    place: int
    loss: float


def find_conditions(
    suspect: Suspect,
    audit: AuditTexts,
    method: TriggerMethod,
    texts: Int[np.ndarray, "text pos"],
    where: Bool[np.ndarray, "text pos"],
    key: Key[Array, ""],
    *,
    rounds: int = 2,
    latents: int = 8,
) -> list[Condition]:
    """Find conditions that together make the target likely. Whether they do is decided by their last loss.

    Args:
      suspect: the model and its dictionary.
      audit: ordinary prompts with the target. The last tokens of the requests are replaced, one for each round.
      method: a method that ranks latents.
      texts: texts to read latents on.
      where: the tokens of these texts that count.
      key: random key.
      rounds: the number of conditions.
      latents: the number of best latents whose token is tried.

    Raises:
      UserError: the method ranks tokens, or none of the best latents fires on these texts.
    """
    found: list[Condition] = []
    for number in range(rounds):
        ranking = method.rank(suspect, audit, jax.random.fold_in(key, number)).top(latents)
        if ranking.what != "latent":
            raise UserError(f"{ranking.method} ranks tokens: conditions are found from latents")
        read = latent_tokens(suspect, [i for (i,) in ranking.ids], texts, where)
        tokens = {place: read.top(latent, 1) for place, (latent,) in enumerate(ranking.ids)}
        tried = {place: tops[0] for place, tops in tokens.items() if tops}
        if not tried:
            raise UserError(f"none of the best {latents} latents fires on these texts: give more texts or latents")
        slots = audit.last_slots(1, skip=number)
        drops = loss_drops(suspect.model, audit, np.asarray(list(tried.values()), np.int32)[:, None], slots)
        place = list(tried)[int(np.argmax(drops))]
        audit = audit.with_tokens([tried[place]], skip=number)
        loss = float(audit_losses(suspect.model, audit).mean(dtype=np.float64))
        found.append(Condition(ranking.ids[place][0], tried[place], place, loss))
    return found


def ranking_of(conditions: list[Condition], before: float) -> Ranking:
    """The conditions as one ranked result, for `judge`: their tokens, and the fall of the loss with all of them.

    Args:
      conditions: what `find_conditions` found.
      before: the mean loss without them.

    Raises:
      UserError: there are no conditions.
    """
    if not conditions:
        raise UserError("no conditions were found")
    ids = [tuple(one.token for one in conditions)]
    return ranked("find_conditions", "tokens", ids, [before - conditions[-1].loss], "nats")
