"""Everything that the package saves: how a small one is written, and how it is read. The laws of files try all of them.

A new saved thing is one function with `@saved_thing`. Its argument `seed` gives another thing of the same shape.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small_models import LLAMA_LIKE, peaky
from tiny_tms import TIED, pentagon
from toy import batch_at, toy

from jax_interp.analysis.lens import TunedLens
from jax_interp.analysis.lens_training import load_tuned_lens, save_tuned_lens
from jax_interp.circuits.attribution_graphs import ActiveFeatures, AttributionGraph
from jax_interp.circuits.attribution_graphs.saving import load_attribution_graph, save_attribution_graph
from jax_interp.core import config_json
from jax_interp.core.json_files import read_json, write_json
from jax_interp.dashboards.collector import Reading, collect
from jax_interp.dashboards.feature_data import Examples, FeatureData, Histogram, Neighbours
from jax_interp.dashboards.statistics import OnToken, TopWindows
from jax_interp.dashboards.windows import Windows
from jax_interp.data import prepared, stdlib
from jax_interp.data.activation_shards import StoreLayout
from jax_interp.data.activation_store import open_activation_store
from jax_interp.data.activation_writing import write_activation_store
from jax_interp.data.token_store import open_token_store, write_token_store
from jax_interp.data.tokenizer import train_bpe
from jax_interp.decomposition.apd.config import APDConfig
from jax_interp.decomposition.apd.train import initial_decomposition as apd_parts
from jax_interp.decomposition.apd.trained import TrainedAPD, load_apd, save_apd
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.storage import load_decomposition, save_decomposition
from jax_interp.decomposition.train import Trained, initial_decomposition
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import AbsTopK, Jump, TopK
from jax_interp.dictionaries.forms import Normalised, Temporal, init_sae
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.forms.temporal import PredictingAttention
from jax_interp.dictionaries.loading import load_dictionary
from jax_interp.dictionaries.saving import save_dictionary
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.models import load, save
from jax_interp.probes import CCS, FittedProbes, LinearProbe, MassMean, PairProbe, load_probes, save_probes
from jax_interp.probes.fit import AXES
from jax_interp.steering import SteeringVector
from jax_interp.steering.applying import load_vectors, save_vectors
from jax_interp.steering.measuring import Propensities, SteeringReport, steerability
from jax_interp.steering.trained import LoReFT, ReFTr1, TrainedSteering, load_steering, save_steering
from jax_interp.surgery import Add, Replace, Zero, at
from jax_interp.surgery.saving import load_edits, save_edits
from jax_interp.toys.cache import cached


@dataclasses.dataclass(frozen=True)
class SavedThing:
    """A saved thing: how it is written into an empty directory, and how it is read."""

    write: Callable[[Path, int], None]
    read: Callable[[Path], Any]
    """Returns everything that a user gets from the files: pytrees, arrays, strings, numbers."""


SAVED: dict[str, SavedThing] = {}


def saved_thing(define: Callable[[], SavedThing]) -> Callable[[], SavedThing]:
    """Register a saved thing under the name of the function that defines it."""
    SAVED[define.__name__] = define()
    return define


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@saved_thing
def edits() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        some = [at("blocks.1.resid_post", Add(normal(seed, 8)), pos=2), at("embed", Replace(normal(seed, 4)))]
        save_edits(directory / "e.safetensors", *some, at("blocks.0.attn.z", Zero(), head=[0, 3]))

    return SavedThing(write, lambda directory: load_edits(directory / "e.safetensors"))


def _steering_vector(name: str) -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        vectors = {f"blocks.{layer}.resid_post": normal(seed + layer, 6) for layer in (2, 11)}
        save_vectors(directory / name, SteeringVector(vectors), model="toy", method="caa")

    def read(directory: Path) -> Any:
        found = load_vectors(directory / name)
        return found.vector, found.model, found.method

    return SavedThing(write, read)


@saved_thing
def steering_vector() -> SavedThing:
    return _steering_vector("v.safetensors")


@saved_thing
def control_vector() -> SavedThing:
    return _steering_vector("v.gguf")


@saved_thing
def trained_steering() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        one = ReFTr1(normal(seed, 8), jnp.float32(seed), top=3)
        loreft = LoReFT(normal(seed, 2, 8), normal(seed + 1, 2, 8), normal(seed, 2))
        both = {"blocks.1.resid_post": one, "blocks.0.mlp_out": loreft}
        save_steering(directory / "s.safetensors", TrainedSteering(both, jnp.asarray([0, -1], jnp.int32)))

    return SavedThing(write, lambda directory: load_steering(directory / "s.safetensors"))


def _saved_dictionary(directory: Path) -> Any:
    found = load_dictionary(directory)
    x = jnp.ones((1, 2, found.dictionary.b_dec.shape[-1]))
    codes = found.dictionary.encode(x) if not isinstance(found.dictionary, CrossLayer) else found.dictionary.sources
    return found.dictionary, codes, found.address, found.writes, found.model, config_json.dumps(found.config)


@saved_thing
def dictionary() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        sae = init_sae(jax.random.key(seed), 8, 16, TopK(4), normal(seed, 8))
        config = variants.topk("blocks.1.resid_post", k=4, n_features=16)
        save_dictionary(directory, sae, address="blocks.1.resid_post", model="toy", config=config)

    return SavedThing(write, _saved_dictionary)


@saved_thing
def crosscoder() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        one = init_sae(jax.random.key(seed), 8, 16, Jump(normal(seed, 16), bandwidth=0.25), normal(seed, 8))
        one = dataclasses.replace(one, write_sites=2)
        save_dictionary(directory, one, address=("embed", "blocks.0.resid_post"), model="toy")

    return SavedThing(write, _saved_dictionary)


@saved_thing
def cross_layer_transcoder() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        sources = [Source(normal(i, 6, 8), normal(i, 8), normal(i, 8, 2 - i, 6), TopK(3)) for i in range(2)]
        one = CrossLayer(tuple(sources), normal(seed, 2, 6))
        save_dictionary(directory, one, address=("a", "b"), writes=("c", "d"), model="toy")

    return SavedThing(write, _saved_dictionary)


@saved_thing
def attribution_graph() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        rng = np.random.default_rng(seed)
        zeros = np.zeros(3, np.int32)
        active = ActiveFeatures(zeros, zeros, np.arange(3, dtype=np.int32), rng.random(3).astype(np.float32))
        graph = AttributionGraph(
            np.array([1, 2]), active, np.array([0, 2]), rng.random((3, 6)), rng.random(3), rng.random(3), np.array([4]),
            np.array([0.5]), 1, 9, (1,), ("a", "b"), ("c",),
        )  # fmt: skip
        save_attribution_graph(directory, graph)

    def everything(directory: Path) -> Any:
        graph = load_attribution_graph(directory)
        return [getattr(graph, f.name) for f in dataclasses.fields(graph) if f.name != "active"], vars(graph.active)

    return SavedThing(write, everything)


@saved_thing
def normalised_dictionary() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        one = Normalised(init_sae(jax.random.key(seed), 8, 16, AbsTopK(3), normal(seed, 8)), "layer_norm")
        save_dictionary(directory, one, address="embed", model="toy")

    return SavedThing(write, _saved_dictionary)


def temporal(seed: int, d: int = 8, n_features: int = 16, tied: bool = False) -> Temporal:
    """A random temporal dictionary with two layers of two heads."""
    W = lambda *shape: 0.3 * normal(seed + len(shape), *shape)
    shapes = {name: (n_features, 8 if name in ("W_Q", "W_K") else n_features) for name in ("W_Q", "W_K", "W_V", "W_O")}
    weights = {name: W(*shape) for name, shape in shapes.items()}
    weights |= {name.replace("W", "b"): W(shape[1]) for name, shape in shapes.items()}
    layers = (PredictingAttention(**weights), PredictingAttention(**jax.tree.map(lambda a: -a, weights)))
    return Temporal(None if tied else W(d, n_features), W(n_features, d), W(d), layers, n_heads=2, k=3, scale=0.5)


@saved_thing
def temporal_dictionary() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        save_dictionary(directory, temporal(seed), address="embed", model="toy")

    return SavedThing(write, _saved_dictionary)


def _saved_probes(directory: Path) -> Any:
    found = load_probes(directory / "p.safetensors")
    return found.probes, config_json.dumps(found.kind), repr(dict(found.axes)), found.classes


def _fitted(kind: Any, probes: Any) -> FittedProbes:
    axes = dict.fromkeys(AXES, (0,)) | {
        "site": ("embed", "blocks.0.mlp_out"),
        "rule": ("last",),
        "strength": (0.5,),
    }
    return FittedProbes(kind, probes, axes, ("no", "yes"))


@saved_thing
def probes() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        of = lambda *shape: normal(seed, 2, 1, 1, 1, 1, 1, *shape)
        save_probes(
            directory / "p.safetensors", _fitted(MassMean(covariance=True), LinearProbe(of(5), of(), of(), True))
        )

    return SavedThing(write, _saved_probes)


@saved_thing
def pair_probes() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        of = lambda *shape: normal(seed, 2, 1, 1, 1, 1, 1, *shape)
        save_probes(directory / "p.safetensors", _fitted(CCS(tries=3), PairProbe(of(2, 5), of(2), of())))

    return SavedThing(write, _saved_probes)


@saved_thing
def decomposition() -> SavedThing:
    config = DecompositionConfig(C=3, tied=TIED)

    def write(directory: Path, seed: int) -> None:
        parts = initial_decomposition(config, pentagon())
        parts = jax.tree.map(lambda a: a + seed, parts)
        gates = config.importance.init(jax.random.key(seed), parts)
        save_decomposition(directory / "d.safetensors", Trained(parts, gates), config)

    return SavedThing(write, lambda directory: load_decomposition(directory / "d.safetensors", pentagon()))


@saved_thing
def apd_decomposition() -> SavedThing:
    config = APDConfig(tied=TIED, top_k=0.4, C=3)

    def write(directory: Path, seed: int) -> None:
        save_apd(directory / "a.safetensors", TrainedAPD(apd_parts(config, pentagon(), seed), jnp.ones(()), 1), config)

    return SavedThing(write, lambda directory: load_apd(directory / "a.safetensors", pentagon()))


@saved_thing
def tuned_lens() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        save_tuned_lens(directory, TunedLens(normal(seed, 2, 6, 6), normal(seed, 2, 6)), model="toy")

    return SavedThing(write, lambda directory: load_tuned_lens(directory, model="toy"))


@saved_thing
def activation_store() -> SavedThing:
    model = functools.cache(toy)

    def write(directory: Path, seed: int) -> None:
        batches, options = functools.partial(batch_at, seed=seed), StoreLayout(40, "float32")
        write_activation_store(directory, model(), "embed", batches, rows=100, layout=options, quiet=True)

    def read(directory: Path) -> Any:
        store = open_activation_store(directory)
        rows = store.take(np.arange(store.rows)), store.batch_at(3, 7)
        return rows, store.addresses, store.widths, store.scale, store.mean, store.variance, store.manifest.model

    return SavedThing(write, read)


@saved_thing
def token_store() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        splits = {name: np.arange(seed, 30 + seed, dtype=np.uint16) for name in ("train", "validation")}
        write_token_store(directory, splits, bos_id=0, about={"corpus": "x"})

    def read(directory: Path) -> Any:
        stores = [open_token_store(directory, split) for split in ("train", "validation")]
        return [(np.asarray(s.tokens), s.bos_id, config_json.dumps(s.manifest.about)) for s in stores]

    return SavedThing(write, read)


@saved_thing
def prepared_text() -> SavedThing:
    config = prepared.TextConfig(vocab_size=265)

    def corpus(seed: int) -> stdlib.Corpus:
        documents = [stdlib.Document(f"{i}.py", f"def f{seed}(a{i}):\n    return a{i}\n" * 9) for i in range(4)]
        return stdlib.Corpus(tuple(documents[:3]), tuple(documents[3:]), f"{seed:064d}", "3.x")

    def with_corpus(seed: int, directory: Path) -> prepared.PreparedText:
        real, prepared.stdlib_corpus = prepared.stdlib_corpus, lambda: corpus(seed)
        try:
            return prepared.prepare_text(config, directory)
        finally:
            prepared.stdlib_corpus = real

    def read(directory: Path) -> Any:
        text = with_corpus(0, directory)
        tokens = np.asarray(text.train.tokens), np.asarray(text.validation.tokens)
        return tokens, text.tokenizer.backend.to_str(), config_json.dumps(text.about)

    return SavedThing(lambda directory, seed: with_corpus(seed, directory) and None, read)


@saved_thing
def toy_cache() -> SavedThing:
    template = {"W": jax.ShapeDtypeStruct((4, 3), jnp.float32), "b": jax.ShapeDtypeStruct((3,), jnp.float32)}
    config = variants.topk("embed", k=2, n_features=8)  # any dataclass

    def of(seed: int, directory: Path, make: Callable[[], Any]) -> Any:
        before, os.environ["JAX_INTERP_CACHE"] = os.environ.get("JAX_INTERP_CACHE"), str(directory)
        try:
            return cached("thing", config, seed, template, make)
        finally:
            del os.environ["JAX_INTERP_CACHE"]
            if before is not None:
                os.environ["JAX_INTERP_CACHE"] = before

    drawn = lambda seed: {"W": normal(seed, 4, 3), "b": normal(seed, 3)}
    return SavedThing(
        lambda directory, seed: of(seed, directory, lambda: drawn(seed)),
        lambda directory: of(0, directory, lambda: drawn(0)),
    )


@saved_thing
def feature_data() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        number = lambda *shape: np.asarray(normal(seed, 2, *shape))
        tokens = np.arange(12).reshape(2, 2, 3) + seed
        examples = Examples("top", Windows(number(2), tokens, number(2, 3), None, 1), number(2, 3))
        histogram = Histogram(np.arange(4.0), np.arange(6).reshape(2, 3) + seed)
        near = Neighbours(np.array([[1], [0]]), number(1), "cosine")
        data = FeatureData(
            np.array([4, 2]), "feature", "title", "toy", "embed", "words", 99, np.array([7, 8 + seed]),
            number(), number(), number(), histogram, (examples,), neighbours=near,
        )  # fmt: skip
        data.with_strings({i: f"<{i}>" for i in range(20)}).write(directory)

    return SavedThing(write, lambda directory: FeatureData.read(directory).to_json())


@saved_thing
def feature_pass() -> SavedThing:
    def of(directory: Path, seed: int) -> Any:
        scores = lambda model, tokens: model[tokens.reshape(-1)]
        batches = [(np.arange(12).reshape(2, 6), np.ones((2, 6), bool))] * 2
        statistics = {"top": TopWindows(2, 1, 1), "on": OnToken(3)}
        found = collect(scores, normal(seed, 12, 3), batches, statistics, Reading(directory))
        return {name: vars(one) for name, one in found.items()}

    return SavedThing(lambda directory, seed: of(directory, seed) and None, lambda directory: of(directory, 0))


@saved_thing
def figures() -> SavedThing:
    values = lambda seed: {"fvu": 0.125 + seed, "layers": [{"l0": 3.5}, {"l0": 12}], "model": "toy", "dead": None}
    read = lambda directory: config_json.dumps(read_json(directory / "evaluation.json"))
    return SavedThing(lambda directory, seed: write_json(directory / "evaluation.json", values(seed)) and None, read)


@saved_thing
def steering_report() -> SavedThing:
    def write(directory: Path, seed: int) -> None:
        drawn = np.random.default_rng(seed).normal(size=(2, 4, 3))
        found = Propensities("set", np.arange(3.0), *drawn, np.arange(4) // 2, {"letter": ("A", "B", "A", "B")})
        SteeringReport("v", "answer", found, steerability(found)).save(directory / "measurement.json")

    return SavedThing(write, lambda directory: SteeringReport.load(directory / "measurement.json").to_json())


@saved_thing
def config() -> SavedThing:
    some = variants.topk("blocks.1.resid_post", k=4, n_features=16)

    def write(directory: Path, seed: int) -> None:
        config_json.save(dataclasses.replace(some, seed=seed), directory / "config.json")

    return SavedThing(write, lambda directory: config_json.dumps(config_json.load(DictionaryConfig, directory)))


@saved_thing
def model() -> SavedThing:
    small = dataclasses.replace(LLAMA_LIKE, n_layers=1, d_model=16, d_mlp=16, vocab_size=280)
    tokenizer = functools.cache(lambda: train_bpe(["def f(x):\n    return x\n" * 30], 280))

    def write(directory: Path, seed: int) -> None:
        save(peaky(small, seed), directory / "m", tokenizer=tokenizer(), max_file_bytes=20_000)

    def read(directory: Path) -> Any:
        loaded, words = load(directory / "m")
        return loaded, words and words.backend.to_str(), words and words.bos_id

    return SavedThing(write, read)
