"""Which tokens a latent fires on: how a latent that was found is read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.steering.backdoors.method import Suspect
from jax_interp.surgery import Model, values_at
from jax_interp.surgery.sparse_coder import as_sparse_coder
from jax_interp.training.placement import automatic
from jax_interp.training.row_pieces import in_pieces


@dataclasses.dataclass(frozen=True, eq=False)
class LatentTokens:
    """The mean activation of some latents on each token of some texts.

    Args:
      latents: the numbers of the latents.
      tokens: the tokens that occur, in order.
      mean: the mean activation of each latent where this token stands.
      count: how often each token occurs.
    """

    latents: tuple[int, ...]
    tokens: Int[np.ndarray, " token"]
    mean: Float[np.ndarray, "latent token"]
    count: Int[np.ndarray, " token"]

    def top(self, latent: int, count: int = 5) -> tuple[int, ...]:
        """The tokens on which a latent is strongest on average, the strongest first; only those where it is on."""
        means = self.mean[self._row(latent)]
        order = np.argsort(-means, kind="stable")[:count]
        return tuple(int(self.tokens[i]) for i in order if means[i] > 0)

    def share(self, latent: int, tokens: Sequence[int]) -> float:
        """Of the mean activations of a latent, the share that belongs to these tokens; every token counts once.

        Raises:
          UserError: the latent is on nowhere.
        """
        means = np.maximum(self.mean[self._row(latent)], 0.0)
        if not (total := means.sum()):
            raise UserError(f"latent {latent} is on at none of these texts")
        return float(means[np.isin(self.tokens, np.asarray(tokens))].sum() / total)

    def _row(self, latent: int) -> int:
        if latent not in self.latents:
            raise UserError(f"latent {latent} was not read: {', '.join(map(str, self.latents))} were")
        return self.latents.index(latent)


def latent_tokens(
    suspect: Suspect,
    latents: Sequence[int],
    tokens: Int[np.ndarray, "text pos"],
    where: Bool[np.ndarray, "text pos"],
    *,
    batch: int = 64,
) -> LatentTokens:
    """Read what latents fire on.

    Args:
      suspect: the model and its dictionary.
      latents: the numbers of the latents.
      tokens: texts, padded at the end.
      where: the tokens that count.
      batch: the number of texts in one forward pass.

    Raises:
      UserError: there is no such latent, or no token counts.
    """
    n = len(suspect.directions())
    if not latents or min(latents) < 0 or max(latents) >= n:
        raise UserError(f"latents {tuple(latents)}: the dictionary has latents 0 to {n - 1}")
    if not (where := np.asarray(where, bool)).any() or where.shape != tokens.shape:
        raise UserError(f"where, of shape {where.shape}, must choose some of the tokens, of shape {tokens.shape}")
    chosen = jnp.asarray(latents, jnp.int32)
    program = functools.partial(_activations, suspect.address, suspect.model, suspect.dictionary, chosen)
    values = in_pieces(program, (np.asarray(tokens, np.int32),), batch)[where].astype(np.float64)
    kinds, index, count = np.unique(tokens[where], return_inverse=True, return_counts=True)
    sums = np.zeros((len(kinds), len(latents)))
    np.add.at(sums, index.reshape(-1), values)
    return LatentTokens(tuple(int(i) for i in latents), kinds, (sums / count[:, None]).T, count)


@functools.partial(jax.jit, static_argnums=0)
@automatic
def _activations(
    address: str, model: Model, dictionary: object, chosen: Array, tokens: Array
) -> Float[Array, "text pos latent"]:
    x = upcast(values_at(model, address)(tokens)[address])
    return as_sparse_coder(dictionary).encode(x)[..., chosen]  # type: ignore[arg-type]
