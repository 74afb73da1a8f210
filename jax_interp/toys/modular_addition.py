"""Modular addition, and the transformer that groks it (Nanda et al. 2023, arXiv 2301.05217).

A `Decoder` of one layer without norms reads the tokens (a, b, =) and predicts (a + b) mod p at the last position. It is
trained on a fraction of all pairs with strong weight decay. It first memorises these pairs, and finds the rule much
later. `progress_measures` shows what happens in between.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast, upcast_leaves
from jax_interp.core.leaves import flatten, unflatten
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.surgery import depth_of, get_block, read, replan
from jax_interp.toys.cache import cached
from jax_interp.toys.toy import TOYS, Toy
from jax_interp.toys.toy_training import ToyTraining, train, trajectory


@reads_older_files(renamed={"recipe": "training"})
@dataclasses.dataclass(frozen=True)
class ModularConfig:
    """The task, the model and the training. The defaults are the paper's, except for p and the fraction.

    On a CPU, p = 53 takes one minute. The paper's p = 113 with a fraction of 0.3 (`PAPER`) takes twenty minutes.
    """

    p: int = 53
    fraction: float = 0.4
    """The fraction of all pairs to train on."""
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 512
    training: ToyTraining = dataclasses.field(
        default_factory=lambda: ToyTraining(4000, 1, 1e-3, "constant", warm_up=10, weight_decay=1.0, betas=(0.9, 0.98))
    )
    """Every step uses all training pairs; the field `batch` is not used."""

    @property
    def model(self) -> Config:
        """The config of the transformer. The token p is `=`."""
        return Config(
            n_layers=1, d_model=self.d_model, n_heads=self.n_heads, d_mlp=self.d_mlp, vocab_size=self.p + 1, n_ctx=3,
            act="relu", gated_mlp=False, mlp_bias=True, norm="none", positions="learned", tied_embedding=False,
        )  # fmt: skip


PAPER = ModularConfig(
    113, 0.3, training=ToyTraining(40_000, 1, 1e-3, "constant", warm_up=10, weight_decay=1.0, betas=(0.9, 0.98))
)


def init_modular(key: Key[Array, ""], config: ModularConfig) -> Decoder:
    """An untrained transformer: weights N(0, 1 / d_model), the unembedding N(0, 1 / vocabulary), biases 0."""
    model = init(config.model, key, stacked=False)
    flat = flatten(model)

    def drawn(name: str, leaf: Array, key: Array) -> Array:
        if name.endswith("bias"):
            return jnp.zeros_like(leaf)
        width = config.p + 1 if name.startswith("unembed") else config.d_model
        return jax.random.normal(key, leaf.shape) * width**-0.5

    keys = jax.random.split(key, len(flat))
    return unflatten(model, {name: drawn(name, leaf, key) for (name, leaf), key in zip(flat.items(), keys)})


def all_pairs(p: int) -> tuple[Int[Array, "pair"], Int[Array, "pair"]]:
    """All pairs (a, b); b changes fastest."""
    both = jnp.arange(p * p)
    return both // p, both % p


def pair_tokens(a: Int[Array, "batch"], b: Int[Array, "batch"], p: int) -> Int[Array, "batch 3"]:
    """The model's input for pairs: a, b, `=`."""
    return jnp.stack([a, b, jnp.full_like(a, p)], axis=1)


def answer_logits(model: Decoder, a: Int[Array, "batch"], b: Int[Array, "batch"]) -> Float[Array, "batch p"]:
    """`model(pair_tokens(a, b, p))[:, -1, :p]`, computed several times faster.

    Only the last position is computed. Each query, key and value depends on one token only, so it is computed once for
    each token. Gradients are the same too. A model under surgery, and a model that is not built as `ModularConfig`
    says, is called as it is. A model in 16 bits is computed in float32.

    Args:
      model: the transformer.
      a: the first numbers.
      b: the second numbers.

    Returns:
      The logits of the numbers, in at least float32.
    """
    model, p = upcast_leaves(model), model.config.vocab_size - 1
    if not _is_plain(model):
        return model(pair_tokens(a, b, p))[:, -1, :p]
    return _readout(model, _after_attention(model, a, b))[1]


def mlp_activations(model: Decoder, a: Int[Array, "batch"], b: Int[Array, "batch"]) -> Float[Array, "batch d_mlp"]:
    """The activations of the neurons of the last MLP at the last position, in at least float32."""
    model = upcast_leaves(model)
    if not _is_plain(model):
        tokens, post = pair_tokens(a, b, model.config.vocab_size - 1), "blocks.-1.mlp.post"
        return read(model, post, output=False)(tokens)[post][:, -1]
    return _readout(model, _after_attention(model, a, b))[0]


def cross_entropy(logits: Float[Array, "batch p"], answer: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """`log(1 + Σ_{j≠y} exp(l_j - l_y))`: the cross-entropy, exact in float32 down to 1e-38.

    The usual difference of logarithms rounds to 0 below 1e-7. The gradient then stops, and the loss jumps. The
    published code uses float64 for this reason.

    Args:
      logits: the logits of the numbers.
      answer: the right number of each row.

    Returns:
      One loss for each row, in nats.
    """
    own = jax.nn.one_hot(answer, logits.shape[1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)
    return jax.nn.softplus(others - jnp.sum(jnp.where(own, logits, 0.0), axis=1))


def training_pairs(key: Key[Array, ""], config: ModularConfig) -> Bool[Array, "pair"]:
    """True for the pairs to train on: `int(fraction p²)` random pairs."""
    order = jax.random.permutation(key, config.p**2)
    return order < int(config.fraction * config.p**2)


def evaluate_modular(model: Decoder, mask: Bool[Array, "pair"], p: int) -> dict[str, Float[Array, ""]]:
    """Cross-entropy and accuracy on the training pairs and on all other pairs.

    Args:
      model: the transformer.
      mask: True for the training pairs.
      p: the modulus.

    Returns:
      `train_loss`, `test_loss`, `train_accuracy`, `test_accuracy`.
    """
    a, b = all_pairs(p)
    logits, answer = answer_logits(model, a, b), (a + b) % p
    right = jnp.argmax(logits, axis=1) == answer
    each = cross_entropy(logits, answer)
    mean = lambda value, where: jnp.mean(value, where=where)
    return {
        "train_loss": mean(each, mask),
        "test_loss": mean(each, ~mask),
        "train_accuracy": mean(right, mask),
        "test_accuracy": mean(right, ~mask),
    }


def train_modular(
    key: Key[Array, ""], config: ModularConfig = ModularConfig(), every: int | None = None
) -> tuple[Decoder, Bool[Array, "pair"], Float[Array, "step"]]:
    """Train a transformer.

    Args:
      key: random key of the initial weights and the training pairs.
      config: the task and the training.
      every: return a model before every `every` steps and one at the end; None: return only the last model.

    Returns:
      The model (with `every`, models on a leading axis), the mask of training pairs, and the loss of every step.
    """
    start, choice = jax.random.split(key)
    mask = training_pairs(choice, config)
    a, b = all_pairs(config.p)
    chosen = jnp.nonzero(mask, size=int(config.fraction * config.p**2))[0]
    a, b = a[chosen], b[chosen]

    def run(model: Decoder, a: Array, b: Array) -> Any:
        loss = lambda model, key: jnp.mean(cross_entropy(answer_logits(model, a, b), (a + b) % config.p))
        if every:
            return trajectory(model, loss, config.training, key, every)
        return train(model, loss, config.training, key)

    model, losses = jax.jit(run)(init_modular(start, config), a, b)
    return model, mask, losses


def modular_target(config: ModularConfig = ModularConfig(), seed: int = 0) -> Decoder:
    """A trained transformer, read from the cache on disk if it was trained before.

    Args:
      config: the task and the training.
      seed: random key of the initial weights and the training pairs.
    """
    template = jax.eval_shape(lambda key: init_modular(key, config), jax.random.key(seed))
    return cached("modular-addition", config, seed, template, lambda: train_modular(jax.random.key(seed), config)[0])


def mlp_to_logits(model: Decoder) -> Float[Array, "d_mlp p"]:
    """W_L: the map from neurons to the logits of the numbers, computed from the weights of the original model.

    Raises:
      UserError: the model has several layers or a norm after them. There is then no such map.
    """
    if depth_of(model) != 1 or model.config.norm != "none" or not model.config.d_mlp:
        raise UserError(
            "a map from neurons to logits needs one layer with an MLP and no norm after it; this model has "
            f"n_layers={depth_of(model)}, norm={model.config.norm!r}, d_mlp={model.config.d_mlp}"
        )
    unembed = model.embed.weight[...].T if model.unembed is None else model.unembed.weight[...]
    return upcast(_block(model).mlp.down.weight[...]) @ upcast(unembed)[:, :-1]


def _block(model: Decoder) -> Any:
    return get_block(model, 0)


def _is_plain(model: Any) -> bool:
    """Whether the model is what a `ModularConfig` describes, in any layout, without surgery and replaced parts."""
    if not isinstance(model, Decoder):
        return False
    own = model.config
    config = ModularConfig(own.vocab_size - 1, d_model=own.d_model, n_heads=own.n_heads, d_mlp=own.d_mlp).model
    if own != config:
        return False
    unrolled = jax.eval_shape(lambda model: replan(model, "*"), model)
    plain = jax.eval_shape(lambda key: init(config, key, stacked=False), jax.random.key(0))
    return jax.tree.structure(unrolled) == jax.tree.structure(plain)


def _after_attention(model: Decoder, a: Array, b: Array) -> Float[Array, "batch d_model"]:
    """The stream after attention at the position of `=`."""
    attn, config = _block(model).attn, model.config
    p = config.vocab_size - 1
    assert model.pos_embed is not None
    embed, pos = model.embed.weight[...], model.pos_embed.weight[...]
    first, second, last = embed[:p] + pos[:1], embed[:p] + pos[1:2], embed[p:] + pos[2:3]
    heads = lambda x, part: (x @ part.weight[...]).reshape(x.shape[0], config.n_heads, config.d_head)
    q = heads(last, attn.q)[0] * attn.scale
    score = lambda x: jnp.einsum("xnh,nh->xn", heads(x, attn.k), q)
    # Rows are selected by a matrix product: the gradient of indexing is a scatter, which is slow on a CPU.
    picks = jax.nn.one_hot(a, p), jax.nn.one_hot(b, p), jnp.ones((a.shape[0], 1))
    tables = first, second, last
    raw = jnp.stack([pick @ score(table) for pick, table in zip(picks, tables)])
    weight = jax.nn.softmax(raw, axis=0)[..., None]
    mixed = [w * jnp.einsum("bx,xnh->bnh", one, heads(x, attn.v)) for w, one, x in zip(weight, picks, tables)]
    z = mixed[0] + mixed[1] + mixed[2]
    return last + z.reshape(a.shape[0], -1) @ attn.o.weight[...]


def _readout(model: Decoder, x: Float[Array, "batch d_model"]) -> tuple[Array, Array]:
    """`(neurons, logits of the numbers)`, computed from the stream after attention."""
    mlp = _block(model).mlp
    post = jax.nn.relu(x @ mlp.up.weight[...] + mlp.up.bias[...][None])
    x = x + post @ mlp.down.weight[...] + mlp.down.bias[...][None]
    assert model.unembed is not None
    return post, x @ model.unembed.weight[...][:, :-1]


@TOYS.register
class ModularAdditionToy(Toy[Decoder]):
    """A transformer of one layer for (a + b) mod p."""

    name = "modular-addition"

    def example(self, key: Key[Array, ""]) -> Decoder:
        return init_modular(key, ModularConfig(7, 0.5, d_model=16, n_heads=2, d_mlp=24))

    def sample(self, model: Decoder, key: Key[Array, ""], batch: int) -> Int[Array, "batch 3"]:
        p = model.config.vocab_size - 1
        a, b = jax.random.randint(key, (2, batch), 0, p)
        return pair_tokens(a, b, p)
