"""Residual MLPs that compute more features than they have neurons, through a fixed random embedding.

    r = x W_E;    r += relu(r W_in) W_out  for each layer;    y = r W_Eᵀ;    label x + relu(x)

W_E `[feature, d_embed]` has rows of norm one and is not trained. The matrices `mlp_in` and `mlp_out` of APD (Braun et
al. 2025) and SPD (Bushnaq et al. 2025) are called `blocks.*.mlp.up` and `blocks.*.mlp.down` here, as in the decoder.

Values: `input`, `embed`, `blocks.<i>.{resid_pre, mlp.pre, mlp.post, mlp_out, resid_post}`, `output`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast, upcast_leaves
from jax_interp.core.objectives import mean_squared_error
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site, blocks_as_pytree, depth_of, iter_blocks, run_blocks
from jax_interp.toys.cache import cached
from jax_interp.toys.layers import Linear, ReluMLP, ResidBlock, init_weight
from jax_interp.toys.toy import TOYS, KnownFeatures, Pattern, Toy
from jax_interp.toys.toy_training import ToyTraining, sparse_features, train


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ResidMLP:
    """A residual MLP: `model(x)` maps `[batch, feature]` to `[batch, feature]`.

    Args:
      embed: W_E `[feature, d_embed]`. The output uses its transpose.
      blocks: `ResidBlock`s.
    """

    embed: Linear
    blocks: list[ResidBlock]

    def __call__(self, x: Float[Array, "batch feature"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps, self.blocks)
        x = site("embed", self.embed(site("input", x, "batch feature"), site / "embed"), "batch d_model")
        x = run_blocks(self.blocks, x, site)
        return site.close(site("output", jnp.einsum("be,fe->bf", x, self.embed.weight), "batch feature"))

    def known_features(self) -> KnownFeatures:
        """The features. `mlp.up` reads each feature by a separate component; all features share the neurons of
        `mlp.down` (SPD).

        `parts` are known for one layer only: W_in reads feature i along the dual basis of the embedding's rows. With
        more layers no parts are known, because later layers read features that earlier layers have changed.
        """
        W_E, parts = upcast(self.embed.weight), {}
        if depth_of(self.blocks) == 1 and W_E.shape[0] <= W_E.shape[1]:  # otherwise features cannot be separated
            up = blocks_as_pytree(self, lambda block: block.mlp.up.weight)[0]
            parts["blocks.*.mlp.up"] = (jnp.linalg.pinv(W_E), W_E @ upcast(up))
        patterns: dict[str, Pattern] = {"blocks.*.mlp.up": "identity", "blocks.*.mlp.down": "dense"}
        return KnownFeatures(W_E.shape[0], patterns, parts)


@reads_older_files(renamed={"recipe": "training"})
@dataclasses.dataclass(frozen=True)
class ResidMLPConfig:
    """A residual MLP and its training."""

    n_features: int = 100
    d_embed: int = 1000
    n_layers: int = 1
    d_mlp: int = 50
    """The number of neurons in each layer."""
    identity: bool = False
    """True: the embedding is the identity, and d_embed equals n_features. False: it is random."""
    probability: float = 0.01
    """The probability that a feature is on."""
    training: ToyTraining = dataclasses.field(default_factory=lambda: ToyTraining(10_000, 2048, 3e-3, "cosine"))
    source: str = ""
    """The publication or program with these numbers."""

    def __post_init__(self) -> None:
        if self.identity and self.d_embed != self.n_features:
            raise UserError(f"an identity embedding has d_embed={self.d_embed} equal to n_features={self.n_features}")


def init_resid_mlp(key: Key[Array, ""], config: ResidMLPConfig) -> ResidMLP:
    """An untrained model. The random embedding also depends on the key."""
    embed, *layers = jax.random.split(key, config.n_layers + 1)
    W_E = jax.random.normal(embed, (config.n_features, config.d_embed))
    W_E = jnp.eye(config.n_features) if config.identity else W_E / jnp.linalg.norm(W_E, axis=1, keepdims=True)
    blocks = []
    for layer in layers:
        up, down = jax.random.split(layer)
        mlp = ReluMLP(
            Linear(init_weight(up, config.d_embed, config.d_mlp)),
            Linear(init_weight(down, config.d_mlp, config.d_embed)),
        )
        blocks.append(ResidBlock(mlp))
    return ResidMLP(Linear(W_E), blocks)


def label(x: Float[Array, "batch feature"]) -> Float[Array, "batch feature"]:
    """The function that the model is trained to compute: `x + relu(x)`."""
    return x + jax.nn.relu(x)


def train_resid_mlp(key: Key[Array, ""], config: ResidMLPConfig = ResidMLPConfig()) -> ResidMLP:
    """Train a model. Only the blocks are trained. The loss uses `in_features`, which takes a tenth of the time.

    Args:
      key: random key of the embedding, the initial weights and the data.
      config: the sizes and the training.
    """
    start, data = jax.random.split(key)
    model = init_resid_mlp(start, config)

    def loss(blocks: list, key: Array) -> Array:
        x = sparse_features(key, config.training.batch, config.n_features, config.probability, -1.0, 1.0)
        return mean_squared_error(label(x), in_features(dataclasses.replace(model, blocks=blocks), x), None)

    blocks, _ = jax.jit(lambda blocks, key: train(blocks, loss, config.training, key))(model.blocks, data)
    return dataclasses.replace(model, blocks=blocks)


def resid_mlp_target(config: ResidMLPConfig | str = "1-layer", seed: int = 0) -> ResidMLP:
    """A trained model, read from the cache on disk if it was trained before.

    Args:
      config: a config, or the name of a preset.
      seed: random key of the embedding, the initial weights and the data.

    Raises:
      UserError: the preset does not exist.
    """
    if isinstance(config, str) and config not in PRESETS:
        raise UserError(f"there is no ResidMLP preset {config!r}: {', '.join(PRESETS)}")
    config = PRESETS[config] if isinstance(config, str) else config
    template = jax.eval_shape(lambda key: init_resid_mlp(key, config), jax.random.key(seed))
    return cached("resid-mlp", config, seed, template, lambda: train_resid_mlp(jax.random.key(seed), config))


def in_features(model: ResidMLP, x: Float[Array, "batch feature"]) -> Float[Array, "batch feature"]:
    """`model(x)`, computed without activations of width d_embed: the embedding is first multiplied with each matrix.

    It is the same function of the same parameters, so gradients are the same too. Only rounding differs. A row takes
    features · (features + 2 neurons) products; in the model it takes d_embed · (2 features + 2 neurons).

    Args:
      model: a residual MLP.
      x: features.

    Returns:
      The output `[batch, feature]`.

    Raises:
      UserError: the model is under surgery, or has biases or replaced layers. Call the model itself.
    """
    W_E, layers = model.embed.weight, _matrices(model)
    reading, writing = [up for up, _ in layers], [down for _, down in layers]
    posts: list[Array] = []
    for W_in in reading:
        pre = x @ (W_E @ W_in)
        for post, W_out in zip(posts, writing):
            pre = pre + post @ (W_out @ W_in)
        posts.append(jax.nn.relu(pre))
    y = x @ (W_E @ W_E.T)
    for post, W_out in zip(posts, writing):
        y = y + post @ (W_out @ W_E.T)
    return y


def collapse(model: ResidMLP) -> ResidMLP:
    """The same function, as a smaller residual MLP whose stream has only the directions that are used.

    These directions are the span of the embedding's rows and of the outputs of all layers except the last. There are
    n_features + (layers - 1) d_mlp of them instead of d_embed (100 instead of 1000 for one layer). This is exact: in
    all other directions every matrix reads zeros, and nothing reads what the last layer writes there.

    Args:
      model: a residual MLP.

    Returns:
      The smaller model, in at least float32; or `model`, if it would not become smaller.

    Raises:
      UserError: the model is under surgery, or has biases or replaced layers.
    """
    model = upcast_leaves(model)
    layers = _matrices(model)
    rows = jnp.concatenate([model.embed.weight, *(down for _, down in layers[:-1])])
    if rows.shape[0] >= rows.shape[1]:
        return model
    basis = jnp.linalg.qr(rows.T)[0]
    blocks = [ResidBlock(ReluMLP(Linear(basis.T @ up), Linear(down @ basis))) for up, down in layers]
    return ResidMLP(Linear(model.embed.weight @ basis), blocks)


def _matrices(model: ResidMLP) -> list[tuple[Array, Array]]:
    """The matrices (up, down) of every layer. Raises UserError if the model computes anything else."""
    layers = [block for _, block in iter_blocks(model)] if isinstance(model, ResidMLP) else []
    plain = [block for block in layers if type(block) is ResidBlock and type(block.mlp) is ReluMLP]
    linear = [part for block in plain for part in (block.mlp.up, block.mlp.down)]
    if len(plain) != len(layers) or not layers or any(type(p) is not Linear or p.bias is not None for p in linear):
        raise UserError(
            "this works on the matrices of a plain residual MLP: on a ResidMLP without surgery, biases and replaced "
            f"layers; got {type(model).__name__}. Call the model itself, or give the original model"
        )
    return [(block.mlp.up.weight, block.mlp.down.weight) for block in plain]


def naive_loss(n_features: int, n_neurons: int, probability: float) -> float:
    """The loss of the naive solution: `(n - d) / n · p / 6`. It has one neuron for each of d = `n_neurons` features,
    and ignores the others."""
    return (n_features - n_neurons) / n_features * probability / 6


PRESETS: dict[str, ResidMLPConfig] = {
    "1-layer": ResidMLPConfig(source="APD 2025: 10k steps"),
    "1-layer-spd": ResidMLPConfig(training=ToyTraining(1000, 2048, 3e-3, "cosine"), source="yaml: SPD 2025, tag v1"),
    "2-layer": ResidMLPConfig(n_layers=2, d_mlp=25, source="APD 2025: 10k steps"),
    "2-layer-spd": ResidMLPConfig(
        n_layers=2, d_mlp=25, training=ToyTraining(1000, 2048, 3e-3, "cosine"), source="yaml: SPD 2025, tag v1"
    ),
    "3-layer": ResidMLPConfig(n_features=102, n_layers=3, d_mlp=17, source="yaml: SPD 2025, tag v1"),
}


@TOYS.register
class ResidMLPToy(Toy[ResidMLP]):
    """Residual MLPs on sparse features in [-1, 1)."""

    name = "resid-mlp"
    presets = tuple(PRESETS)

    def example(self, key: Key[Array, ""]) -> ResidMLP:
        return init_resid_mlp(key, ResidMLPConfig(n_features=6, d_embed=9, n_layers=2, d_mlp=3))

    def sample(self, model: ResidMLP, key: Key[Array, ""], batch: int) -> Float[Array, "batch feature"]:
        return sparse_features(key, batch, model.embed.weight.shape[0], 0.01, -1.0)

    def target(self, preset: str, seed: int = 0) -> ResidMLP:
        return resid_mlp_target(preset, seed)

    def collapse(self, model: ResidMLP) -> ResidMLP:
        return collapse(model)
