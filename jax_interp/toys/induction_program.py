"""A transformer whose weights are written by hand, so that its circuit is known edge by edge: induction in two layers.

The residual stream has four parts that do not overlap: the token, the position, the previous token, and the output.

- Head 0 of layer 0 looks one position back and copies the token there into the part "previous token".
- Head 0 of layer 1 looks for positions whose previous token is the current token, and copies the token at these
  positions into the part "output". The unembedding reads this part alone.

All other heads and the MLPs have small random weights. They are what a method of circuit discovery must not choose.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.leaves import flatten, unflatten
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init

MOVED = ("input->a0.h0<v>", "a0.h0->a1.h0<k>", "input->a1.h0<v>", "a1.h0->logits")
"""The edges that carry what differs between a prompt and its reordered prompt."""
FIXED = ("input->a0.h0<q>", "input->a0.h0<k>", "input->a1.h0<q>")
"""The other edges of the circuit: positions, and the current token. They carry the same in both prompts."""


@dataclasses.dataclass(frozen=True)
class ProgramConfig:
    """The sizes of the program."""

    vocab: int = 12
    n_ctx: int = 9
    n_heads: int = 3
    d_mlp: int = 16
    focus: float = 6.0
    """The attention score of the position that a head looks for; all others have 0."""
    noise: float = 0.05
    """The standard deviation of the weights of all other heads and of the MLPs."""

    @property
    def model(self) -> Config:
        """The config of the transformer, without norms."""
        return Config(
            n_layers=2, d_model=3 * self.vocab + self.n_ctx, n_heads=self.n_heads, d_head=max(self.vocab, self.n_ctx),
            d_mlp=self.d_mlp, vocab_size=self.vocab, n_ctx=self.n_ctx, norm="none", positions="learned",
            tied_embedding=False, gated_mlp=False, act="relu",
        )  # fmt: skip


def induction_program(key: Key[Array, ""], config: ProgramConfig = ProgramConfig()) -> Decoder:
    """The transformer.

    Args:
      key: random key of the weights that have no function.
      config: the sizes.
    """
    model = init(config.model, key, stacked=False)
    flat = flatten(model)
    weights = {name: config.noise * jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
               for i, (name, leaf) in enumerate(flat.items())}  # fmt: skip
    vocab, length = config.vocab, config.n_ctx
    token, pos, before, output = np.split(np.arange(config.model.d_model), np.cumsum([vocab, length, vocab]))
    width = config.model.d_head
    sharp = config.focus * width**0.5
    weights["embed.weight"] = jnp.zeros_like(weights["embed.weight"]).at[:, token].set(jnp.eye(vocab))
    weights["pos_embed.weight"] = jnp.zeros_like(weights["pos_embed.weight"]).at[:, pos].set(jnp.eye(length))
    weights["unembed.weight"] = jnp.zeros_like(weights["unembed.weight"]).at[output].set(10 * jnp.eye(vocab))

    def head(rows: np.ndarray, what: np.ndarray) -> Float[Array, "d_model d_head"]:
        """A map that reads some coordinates of the stream and nothing else."""
        return jnp.zeros((config.model.d_model, width)).at[rows, : what.shape[1]].set(what)

    def write(layer: int, q: Array, k: Array, v: Array, into: np.ndarray) -> None:
        for name, map_ in (("q", q), ("k", k), ("v", v)):
            at = f"blocks.{layer}.attn.{name}.weight"
            weights[at] = weights[at].at[:, :width].set(map_)
        at = f"blocks.{layer}.attn.o.weight"
        out = jnp.zeros((width, config.model.d_model)).at[np.arange(vocab), into].set(1.0)
        weights[at] = weights[at].at[:width].set(out)

    copy = head(token, np.eye(vocab))
    write(0, head(pos, sharp * np.eye(length, k=-1)), head(pos, np.eye(length)), copy, before)
    write(1, head(token, sharp * np.eye(vocab)), head(before, np.eye(vocab)), copy, output)
    return unflatten(model, weights)


def reordered_prompts(
    key: Key[Array, ""], n: int, config: ProgramConfig = ProgramConfig()
) -> tuple[Int[Array, "n pos"], Int[Array, "n pos"], Int[Array, " n"], Int[Array, " n"]]:
    """Prompts of distinct tokens whose last token is one of the earlier ones, and the same tokens in another order.

    Returns:
      (clean, corrupted, the token after the earlier occurrence in the clean prompt, that in the corrupted prompt).
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    rows: list[tuple[np.ndarray, np.ndarray, int, int]] = []
    while len(rows) < n:
        first = rng.permutation(config.vocab)[: config.n_ctx - 1]
        second = rng.permutation(first)
        query = first[rng.integers(len(first) - 1)]
        found = [int(np.nonzero(order == query)[0][0]) for order in (first, second)]
        if found[1] < len(second) - 1 and first[found[0] + 1] != second[found[1] + 1] and min(found) > 0:
            rows.append((np.append(first, query), np.append(second, query), first[found[0] + 1], second[found[1] + 1]))
    clean, corrupted, answers, others = (jnp.asarray(np.stack(column), jnp.int32) for column in zip(*rows))
    return clean, corrupted, answers, others
