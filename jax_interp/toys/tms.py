"""Toy models of superposition: n sparse features through m < n dimensions and back (Elhage et al. 2022).

    y = relu(x W Wᵀ + b)        linear1: W [n, m];   linear2: its transpose and b;   the linear variant: no relu

W is one parameter. In a tied model `linear2` holds only the bias and is called with the matrix of `linear1`. So there
is only one matrix to train, and `decompose(model, "linear1", tied=TIED)` has one pair of V and U. `untie(model)` gives
`linear2` its own matrix. `insert_identity(model)` puts identity matrices between the two layers. These "+ID" models
compute the same function and have one more matrix to decompose.

Values: `input`, `hidden`, `hidden_layers.<i>`, `pre`, `output`, all "batch feature".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site
from jax_interp.toys.cache import cached
from jax_interp.toys.layers import Linear, Transposed, WeightInit, init_bias, init_weight
from jax_interp.toys.toy import TOYS, KnownFeatures, Toy
from jax_interp.toys.toy_training import ToyTraining, sparse_features, train

TIED = (("linear1", "linear2"),)
"""The argument `tied=` of `decompose` for a tied model."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TMS:
    """A toy model of superposition: `model(x)` maps `[batch, feature]` to `[batch, feature]`.

    Instances that were trained together have a leading axis. Call them under `jax.vmap`.

    Args:
      linear1: W `[feature, hidden]`.
      hidden_layers: square matrices between the two, an `nnx.List` of `Linear`.
      linear2: `Transposed` in a tied model, otherwise `Linear` `[hidden, feature]`.
      is_tied: whether `linear2` uses the matrix of `linear1`.
      relu: whether there is a ReLU at the output.
    """

    linear1: Linear
    hidden_layers: nnx.List
    linear2: Linear | Transposed
    is_tied: bool = dataclasses.field(default=True, metadata={"static": True})
    relu: bool = dataclasses.field(default=True, metadata={"static": True})

    def __call__(self, x: Float[Array, "batch feature"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps)
        x = site("input", x, "batch feature")
        h = site("hidden", self.linear1(x, site / "linear1"), "batch feature")
        for i, layer in enumerate(self.hidden_layers):
            h = site(f"hidden_layers.{i}", layer(h, site / f"hidden_layers.{i}"), "batch feature")
        shared = (self.linear1.weight,) if self.is_tied else ()
        pre = site("pre", self.linear2(h, site / "linear2", *shared), "batch feature")
        return site.close(site("output", jax.nn.relu(pre) if self.relu else pre, "batch feature"))

    def known_features(self) -> KnownFeatures:
        """The features. Each feature is read along a row of W and written along a column of the transpose. All features
        share an inserted identity matrix."""
        W = self.linear1.weight
        one_each = jnp.eye(W.shape[0], dtype=W.dtype)
        transpose = W.T if isinstance(self.linear2, Transposed) else self.linear2.weight
        return KnownFeatures(
            W.shape[0],
            {"linear[12]": "identity", "hidden_layers.*": "dense"},
            {"linear1": (one_each, W), "linear2": (transpose, one_each)},
            {"linear1": W},
        )


@reads_older_files(renamed={"recipe": "training", "draw": "weight_init", "draws_bias": "random_bias"})
@dataclasses.dataclass(frozen=True)
class TMSConfig:
    """A toy model of superposition and its training. Feature i has the weight `importance_decay ** i` in the loss."""

    n_features: int = 5
    n_hidden: int = 2
    n_identity: int = 0
    """Identity matrices inserted after training."""
    relu: bool = True
    weight_init: WeightInit = "xavier"
    """The initial distribution of W. It decides whether features get lost; the learning rate schedule does not."""
    random_bias: bool = False
    """True: the initial bias is torch's default. False: it is 0."""
    instances: int | None = None
    """The number of models that are trained together, on a leading axis. None: one model without this axis."""
    probability: float | tuple[float, ...] = 0.05
    """The probability that a feature is on; a tuple has one for each instance."""
    importance_decay: float = 1.0
    last_importance: float | tuple[float, ...] = 1.0
    """A factor of the last feature's importance; a tuple has one factor for each instance."""
    training: ToyTraining = dataclasses.field(default_factory=ToyTraining)
    source: str = ""
    """The publication or program with these numbers."""

    def __post_init__(self) -> None:
        if self.n_hidden < 1:
            raise UserError(f"n_hidden={self.n_hidden} is at least 1")
        for name in ("probability", "last_importance"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.instances:
                raise UserError(f"{name} has {len(value)} entries for instances={self.instances}: one for each")

    def importance(self) -> Float[Array, "*instance feature"]:
        """The weight of each feature in the loss, `[feature]` or `[instance, feature]`."""
        base = self.importance_decay ** jnp.arange(self.n_features, dtype=jnp.float32)
        last = jnp.asarray(self.last_importance, jnp.float32)
        at_last = jnp.arange(self.n_features) == self.n_features - 1
        leading = (None,) * last.ndim
        return jnp.where(at_last[leading], last[..., None] * base[leading], base[leading])


def init_tms(key: Key[Array, ""], config: TMSConfig) -> TMS:
    """One untrained instance, without identity matrices."""
    w, b = jax.random.split(key)
    n, m = config.n_features, config.n_hidden
    bias = init_bias(b, m, (n,)) if config.random_bias else jnp.zeros(n)
    return TMS(Linear(init_weight(w, n, m, config.weight_init)), nnx.List([]), Transposed(bias), relu=config.relu)


def tms_loss(
    model: TMS, x: Float[Array, "batch feature"], importance: Float[Array, "feature"] | float = 1.0
) -> Float[Array, ""]:
    """`mean_b mean_i I_i (x_i - y_i)²`. (Elhage et al. sum over features, which gives n times this value.)

    Args:
      model: one instance.
      x: features.
      importance: I, one for each feature or one for all.
    """
    weight = jnp.broadcast_to(jnp.asarray(importance, jnp.float32), x.shape[-1:])
    return jnp.mean(weight[None] * (x - model(x)) ** 2)


def train_tms(key: Key[Array, ""], config: TMSConfig = TMSConfig()) -> TMS:
    """Train a model, or `config.instances` models on a leading axis. 5-2 takes about 4 s on two CPU cores.

    Args:
      key: random key of the initial weights and the data.
      config: the sizes and the training.

    Returns:
      The model, with `config.n_identity` identity matrices inserted.
    """

    def one(key: Array, probability: Array, importance: Array) -> TMS:
        start, data = jax.random.split(key)

        def loss(model: TMS, key: Array) -> Array:
            return tms_loss(
                model, sparse_features(key, config.training.batch, config.n_features, probability), importance
            )

        return train(init_tms(start, config), loss, config.training, data)[0]

    probability, importance = jnp.asarray(config.probability, jnp.float32), config.importance()
    if config.instances is None:
        model = jax.jit(one)(key, probability, importance)
    else:
        axes = (0, 0 if probability.ndim else None, 0 if importance.ndim > 1 else None)
        keys = jax.random.split(key, config.instances)
        model = jax.jit(jax.vmap(one, in_axes=axes))(keys, probability, importance)
    return insert_identity(model, config.n_identity)


def tms_target(config: TMSConfig | str = "5-2", seed: int = 0) -> TMS:
    """A trained model, read from the cache on disk if it was trained before.

    Args:
      config: a config, or the name of a preset.
      seed: random key of the initial weights and the data.

    Raises:
      UserError: the preset does not exist.
    """
    config = preset(config) if isinstance(config, str) else config
    template = jax.eval_shape(lambda key: train_tms(key, config), jax.random.key(seed))
    return cached("tms", config, seed, template, lambda: train_tms(jax.random.key(seed), config))


def insert_identity(model: TMS, count: int = 1) -> TMS:
    """The same function with more identity matrices between `linear1` and `linear2`.

    Args:
      model: one instance, or several on a leading axis.
      count: the number of matrices to insert, after existing ones.
    """
    *instances, _, m = model.linear1.weight.shape
    eye = Linear(jnp.broadcast_to(jnp.eye(m), (*instances, m, m)))
    return dataclasses.replace(
        model, hidden_layers=nnx.List([nnx.data(layer) for layer in (*model.hidden_layers, *[eye] * count)])
    )


def untie(model: TMS) -> TMS:
    """The same function, with a separate matrix in `linear2`."""
    if not model.is_tied:
        return model
    linear2 = Linear(jnp.swapaxes(model.linear1.weight, -1, -2), model.linear2.bias)
    return dataclasses.replace(model, linear2=linear2, is_tied=False)


def preset(name: str) -> TMSConfig:
    """A published configuration by name. If there is none, raises UserError with all names."""
    if name not in PRESETS:
        raise UserError(f"there is no TMS preset {name!r}: {', '.join(PRESETS)}")
    return PRESETS[name]


def _falling(count: int, base: float = 20.0) -> tuple[float, ...]:
    """`base ** -linspace(0, 1, count)`, from 1 to 1 / base."""
    return tuple(base ** -(i / (count - 1)) for i in range(count))


def _phase(n: int, m: int, side: int = 10) -> TMSConfig:
    """A grid of probability (1 to .01) times importance of the last feature (.1 to 10), both logarithmic."""
    p = [10 ** (-2 * i / (side - 1)) for i in range(side) for _ in range(side)]
    last = [10 ** (2 * j / (side - 1) - 1) for _ in range(side) for j in range(side)]
    return TMSConfig(n, m, instances=side**2, probability=tuple(p), last_importance=tuple(last), training=_NOTEBOOK,
                     source="Elhage et al. 2022, phase diagram")  # fmt: skip


_NOTEBOOK = ToyTraining(10_000, 1024, 1e-3, "constant")
_V1 = ToyTraining(10_000, 1024, 5e-3, "constant")
_ELHAGE = "Elhage et al. 2022, notebook (from memory)"
_SPD = "yaml: SPD 2025, tag v1"

PRESETS: dict[str, TMSConfig] = {
    "5-2": TMSConfig(source="xavier start and linear decay: 23 of 24 seeds give a pentagon"),
    "5-2-id": TMSConfig(n_identity=1, source="as 5-2, identity inserted"),
    "40-10": TMSConfig(40, 10, training=ToyTraining(2000, 2048), source="yaml: APD 2025"),
    "40-10-id": TMSConfig(40, 10, n_identity=1, training=ToyTraining(2000, 2048), source="as 40-10, identity inserted"),
    "5-2-spd": TMSConfig(weight_init="torch", random_bias=True, training=_V1, source=_SPD),
    "5-2-id-spd": TMSConfig(weight_init="torch", random_bias=True, n_identity=1, training=_V1, source=_SPD),
    "40-10-spd": TMSConfig(40, 10, weight_init="torch", training=dataclasses.replace(_V1, batch=8192), source=_SPD),
    "40-10-id-spd": TMSConfig(
        40, 10, n_identity=1, weight_init="torch", training=dataclasses.replace(_V1, batch=8192), source=_SPD
    ),
    "5-2-apd": TMSConfig(instances=12, source="yaml: APD 2025"),
    "40-10-apd": TMSConfig(40, 10, instances=3, training=ToyTraining(2000, 2048), source="yaml: APD 2025"),
    "intro": TMSConfig(5, 2, instances=10, probability=_falling(10), importance_decay=0.9, training=_NOTEBOOK,
                       source=_ELHAGE),
    "20-5": TMSConfig(20, 5, instances=10, probability=_falling(10), importance_decay=0.7, training=_NOTEBOOK,
                      source=_ELHAGE),
    "80-20": TMSConfig(80, 20, instances=10, probability=_falling(10), importance_decay=0.9, training=_NOTEBOOK,
                       source=_ELHAGE),
    "big": TMSConfig(100, 20, instances=20, probability=_falling(20), importance_decay=100 ** (-1 / 99),
                     training=_NOTEBOOK, source=_ELHAGE),
    "geometry": TMSConfig(400, 30, instances=20, probability=_falling(20), training=_NOTEBOOK,
                          source="Elhage et al. 2022, paper"),
    "geometry-200": TMSConfig(200, 20, instances=20, probability=_falling(20), training=_NOTEBOOK, source=_ELHAGE),
    "phase-2-1": _phase(2, 1),
    "phase-3-2": _phase(3, 2),
}  # fmt: skip


@TOYS.register
class TMSToy(Toy[TMS]):
    """Toy models of superposition on sparse features in [0, 1)."""

    name = "tms"
    presets = tuple(name for name, config in PRESETS.items() if config.instances is None)

    def example(self, key: Key[Array, ""]) -> TMS:
        return insert_identity(init_tms(key, TMSConfig(6, 3, weight_init="torch", random_bias=True)))

    def sample(self, model: TMS, key: Key[Array, ""], batch: int) -> Float[Array, "batch feature"]:
        return sparse_features(key, batch, model.linear1.weight.shape[0], 0.05)

    def target(self, preset: str, seed: int = 0) -> TMS:
        if preset in PRESETS and PRESETS[preset].instances is not None:
            single = ", ".join(f"tms:{name}" for name in self.presets)
            raise UserError(f"target 'tms:{preset}' is several instances in one, decompose takes one model: {single}")
        return tms_target(preset, seed)
