"""Feature absorption and splitting (Chanin et al. 2024, arXiv:2409.14507; the formulas of SAEBench, arXiv:2503.09532).

A latent for a concept ("begins with S") is absorbed where it stays off and the latent of a special case ("snake")
writes the direction of the concept in its place. For each concept:

    probe        p̂: the unit weight of a logistic regression on activations. Concepts with F1 below 0.6 are left out
    main latents the k latents with the largest weights in a linear probe with an L1 penalty. k grows from 1 while the
                 F1 of a logistic regression on them rises by more than 0.03. k above 1: the concept is split
    examples     test examples of the concept whose probe is positive

With the projections a_i d_i·p̂ of the latents, x·p̂ of the activation, M = the sum over main latents, and A = the sum of
the three largest of other latents (with a cosine of at least 0.1 and a positive projection):

    fraction     0 if M >= x·p̂ or A < 0.4 x·p̂;  1 if M <= 0;  else A' / (A' + M) with A' = min(A, x·p̂ - M)
    full         no main latent fires, and the latent with the largest projection (cosine at least 0.025) has at least
                 0.4 of x·p̂

The published code multiplies latents by cosines, which is the same where decoder rows have norm 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.logistic import fit_logistic
from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.evaluation.benchmarks.baselines import Compared, fixed_directions
from jax_interp.dictionaries.evaluation.benchmarks.measure import (
    DICTIONARY,
    Measure,
    mean_over_examples,
    mean_over_reseeds,
)
from jax_interp.dictionaries.evaluation.similarity import unit_directions
from jax_interp.dictionaries.sparse_coder import EncoderDecoder

LEAST_F1, RISE = 0.6, 0.03
MOST_MAIN = 10
ABSORBERS, ABSORBER_COSINE, FULL_COSINE, SHARE = 3, 0.1, 0.025, 0.4
L1, EPOCHS, BATCH, RATE, LAST_RATE = 0.01, 50, 4096, 0.01, 1e-5
ENTRIES = 1 << 26


@dataclasses.dataclass(frozen=True)
class OfConcept:
    """One concept in one split, for one coder."""

    main: Int[np.ndarray, " latent"]
    """The main latents. More than one: the concept is split."""
    f1: Float[np.ndarray, " k"]
    """The F1 of a logistic regression on k = 1, 2, ... latents, on test examples."""
    fraction: Float[np.ndarray, " example"]
    """The absorption fraction of each test example that the probe gets right."""
    full: Bool[np.ndarray, " example"]
    """Whether it is fully absorbed."""


@dataclasses.dataclass(frozen=True)
class Absorption:
    """The results of `absorption`."""

    concepts: tuple[str, ...]
    probe_f1: Float[np.ndarray, "split concept"]
    """The F1 of the probes on activations. Below 0.6 a concept is left out of its split."""
    found: dict[str, dict[str, list[OfConcept]]]
    """By coder and concept: the splits in which the concept has a good probe."""

    def measures(self) -> Iterator[Measure]:
        """The means over concepts."""
        splits = len(self.probe_f1)
        over = f"{splits} splits and the test examples of {len(self.found[DICTIONARY])} concepts"
        few = len(self.found[DICTIONARY])
        warning = f"only {few} concepts have a good probe; SAEBench asks for 20" if few < 20 else ""
        hits = lambda of, what: [[getattr(split, what) for split in splits] for splits in of.values()]
        for name, what, meaning in (
            ("absorption, mean fraction", "fraction", "how much of a concept other latents write in place of its own"),
            ("absorption, full", "full", "share of examples of a concept on which its own latents do not fire at all"),
        ):
            estimates = {coder: mean_over_examples(hits(of, what), over) for coder, of in self.found.items()}
            yield Measure(name, meaning, "lower", estimates, warning=warning)
        for name, of_split, meaning in (
            ("splitting", lambda split: float(len(split.main)), "latents that one concept is divided into"),
            ("first-latent F1", lambda split: float(split.f1[0]), "F1 of the best single latent of a concept"),
        ):
            estimates = {}
            for coder, of in self.found.items():
                per_concept = [float(np.mean([of_split(split) for split in splits])) for splits in of.values()]
                estimates[coder] = mean_over_reseeds(per_concept, "concepts")
            yield Measure(name, meaning, "lower" if name == "splitting" else "higher", estimates, warning=warning)


def absorption(
    compared: Compared,
    x: Float[np.ndarray, "example d"],
    labels: Bool[np.ndarray, "example concept"],
    concepts: tuple[str, ...],
    *,
    splits: int = 3,
    train: float = 0.7,
    seed: int = 0,
) -> Absorption:
    """Measure absorption and splitting of concepts.

    Args:
      compared: the dictionary and its baselines. They must have fixed directions of the width of `x`.
      x: activations that the dictionary reads.
      labels: which concepts each example has.
      concepts: their names.
      splits: random divisions into training and test examples. Each has another random dictionary.
      train: the fraction of examples for training.
      seed: of the splits.

    Raises:
      UserError: shapes do not fit, a concept has fewer than 10 examples or no example without it, features have no
        direction in the space of `x`, or no concept has a probe with an F1 of at least 0.6 in any split.
    """
    x, labels = np.asarray(x, np.float32), np.asarray(labels, bool)
    if labels.shape != (len(x), len(concepts)):
        raise UserError(f"labels have shape {labels.shape} for {len(x)} examples and {len(concepts)} concepts")
    for name, count in zip(concepts, labels.sum(0).tolist(), strict=True):
        if not 10 <= count <= len(x) - 10:
            raise UserError(f"{name}: {count} of {len(x)} examples; at least 10 with and 10 without it are needed")
    if compared.reseeds < splits:
        raise UserError(f"{splits} splits need as many random dictionaries, and there are {compared.reseeds}")
    found: dict[str, dict[str, list[OfConcept]]] = {name: {} for name, _ in compared.columns()}
    probe_f1 = np.zeros((splits, len(concepts)))
    for split in range(splits):
        part = split_examples(labels, train, np.random.default_rng([seed, split]))
        probes, scores = _probes(x, labels, part)
        probe_f1[split] = [f1(scores[i, ~part], labels[~part, i]) for i in range(len(concepts))]
        good = np.flatnonzero(probe_f1[split] >= LEAST_F1)
        for name, coders in compared.columns():
            coder = coders[min(split, len(coders) - 1)]
            if len(good):
                results = _of_coder(coder, x, labels[:, good], part, probes[good], scores[good] > 0)
                for i, result in zip(good, results, strict=True):
                    found[name].setdefault(concepts[i], []).append(result)
    with_examples = {c for c, of in found[DICTIONARY].items() if any(len(r.fraction) for r in of)}
    if not with_examples:
        raise UserError(
            f"no concept has a linear probe with F1 of at least {LEAST_F1} (the best: {probe_f1.max():.2f}): the model "
            "does not represent these concepts here, so their absorption is not defined"
        )
    kept = lambda of: {c: [r for r in results if len(r.fraction)] for c, results in of.items() if c in with_examples}
    return Absorption(concepts, probe_f1, {name: kept(of) for name, of in found.items()})


@jax.jit
def example_absorption(
    x: Float[Array, "example d"],
    z: Float[Array, "example latent"],
    directions: Float[Array, "latent d"],
    probe: Float[Array, " d"],
    main: Bool[Array, " latent"],
) -> tuple[Float[Array, " example"], Bool[Array, " example"]]:
    """The absorption of one concept in each example: (fraction, full), by the formulas above.

    Args:
      x: activations of examples that have the concept.
      z: their latents.
      directions: the decoder rows, of any norm.
      probe: the direction of the concept, of any norm.
      main: which latents are the main latents of the concept.
    """
    exact = jax.lax.Precision.HIGHEST
    unit = probe / jnp.sqrt(jnp.sum(probe * probe))
    along = jnp.matmul(directions, unit, precision=exact)
    cosine = jnp.matmul(unit_directions(directions), unit, precision=exact)
    projection, whole = z * along[None, :], jnp.matmul(x, unit, precision=exact)
    zero = jnp.zeros_like(projection)
    M = jnp.sum(jnp.where(main[None, :], projection, zero), axis=1)
    other = (~main & (cosine >= ABSORBER_COSINE))[None, :] & (projection > 0)
    A = jnp.sum(top_k(jnp.where(other, projection, zero), min(ABSORBERS, z.shape[1]))[0], axis=1)
    of_rest = jnp.minimum(A, whole - M)
    partly = of_rest / jnp.where(M > 0, of_rest + M, jnp.ones_like(M))
    none = (whole <= M) | (SHARE * whole > A) | (whole <= 0)
    fraction = jnp.where(none, 0.0, jnp.where(M <= 0, 1.0, jnp.clip(partly, 0, 1))).astype(x.dtype)
    silent = jnp.all(jnp.where(main[None, :], jnp.abs(z), jnp.zeros_like(z)) < 1e-8, axis=1)
    largest = jnp.argmax(projection, axis=1)
    top = jnp.take_along_axis(projection, largest[:, None], axis=1)[:, 0]
    full = silent & (cosine[largest] >= FULL_COSINE) & (whole > 0) & (top >= SHARE * whole)
    return fraction, full


def f1(scores: Float[np.ndarray, " example"], y: Bool[np.ndarray, " example"]) -> float:
    """F1 of the prediction `scores > 0`. It is 0 where nothing is predicted and nothing is true."""
    predicted = scores > 0
    return float(2 * np.sum(predicted & y) / max(np.sum(predicted) + np.sum(y), 1))


def split_examples(labels: np.ndarray, train: float, rng: np.random.Generator) -> Bool[np.ndarray, " example"]:
    """A random training part, in which each concept has an example, and so has the rest."""
    for _ in range(100):
        part = np.zeros(len(labels), bool)
        part[rng.permutation(len(labels))[: round(train * len(labels))]] = True
        if labels[part].any(0).all() and labels[~part].any(0).all():
            return part
    raise UserError("no random split has an example of each concept in both parts: concepts have too few examples")


def _probes(x: np.ndarray, labels: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights [concept, d] of logistic regressions on activations, and their scores [concept, example]."""
    weights, scores = [], []
    size = max(ENTRIES // x.size, 1)
    for start in range(0, labels.shape[1], size):
        y = labels[:, start : start + size].T
        copies = jnp.broadcast_to(jnp.asarray(x), (len(y), *x.shape))
        fit = fit_logistic(copies, jnp.asarray(y), jnp.asarray(np.broadcast_to(part, y.shape), jnp.float32))
        weights.append(np.asarray(fit.weight))
        scores.append(np.asarray(fit.scores(copies)))
    return np.concatenate(weights), np.concatenate(scores)


def _of_coder(
    coder: EncoderDecoder, x: np.ndarray, labels: np.ndarray, part: np.ndarray, probes: np.ndarray, positive: np.ndarray
) -> list[OfConcept]:
    """The results of all concepts for one coder."""
    directions = fixed_directions(coder, "absorption")
    z = np.asarray(_encode(coder, jnp.asarray(x)), np.float32)
    if not np.isfinite(z).all():
        raise UserError("latents are not finite")
    weight = _sparse_probe(jnp.asarray(z[part]), jnp.asarray(labels[part]))
    k = min(MOST_MAIN, z.shape[1])
    values, ranked = (np.asarray(a) for a in top_k(weight.T, k))  # [concept, k]
    y = labels.T
    chosen = z[:, ranked].transpose(1, 0, 2)  # [concept, example, k]
    found = np.zeros((len(y), k))
    balanced = np.where(y, 0.5 / y[:, part].mean(1, keepdims=True), 0.5 / (~y[:, part]).mean(1, keepdims=True)) * part
    for number in range(1, k + 1):
        columns = jnp.asarray((np.arange(k) < number)[None, :] & (values > 0))
        fit = fit_logistic(jnp.asarray(chosen), jnp.asarray(y), jnp.asarray(balanced, jnp.float32), columns)
        scores = np.asarray(fit.scores(jnp.asarray(chosen)))
        found[:, number - 1] = [f1(s[~part], label[~part]) for s, label in zip(scores, y, strict=True)]
    results = []
    for i in range(len(y)):
        main = ranked[i, : _grown(found[i])]
        is_main = np.zeros(z.shape[1], bool)
        is_main[main] = True
        examples = ~part & y[i] & positive[i]
        results.append(_example_results(x, z, directions, probes[i], is_main, examples, main, found[i]))
    return results


def _example_results(
    x: np.ndarray, z: np.ndarray, directions: Any, probe: np.ndarray, is_main: np.ndarray, examples: np.ndarray,
    main: np.ndarray, scores: np.ndarray,
) -> OfConcept:  # fmt: skip
    rows = np.flatnonzero(examples)
    padded = np.resize(rows, -(-max(len(rows), 1) // 64) * 64) if len(rows) else np.zeros(64, int)  # few programs
    given = (jnp.asarray(a) for a in (x[padded], z[padded], directions, probe, is_main))
    fraction, full = example_absorption(*given)
    return OfConcept(main, scores, np.asarray(fraction)[: len(rows)], np.asarray(full)[: len(rows)])


@jax.jit
def _encode(coder: Any, x: Float[Array, "example d"]) -> Float[Array, "example latent"]:
    return coder.encode(x).astype(jnp.float32)


def _grown(scores: Float[np.ndarray, " k"]) -> int:
    """The number of main latents: k grows from 1 while F1 rises by more than `RISE`."""
    k = 1
    while k < len(scores) and scores[k] > scores[k - 1] + RISE:
        k += 1
    return k


@jax.jit
def _sparse_probe(z: Float[Array, "example latent"], y: Bool[Array, "example concept"]) -> Array:
    """The weights [latent, concept] of linear probes with an L1 penalty: as in SAEBench, 50 epochs of Adam in batches
    of 4,096, here with balanced classes. The order of batches is fixed, so there is no seed."""
    n, size = len(z), min(BATCH, len(z))
    steps_per_epoch = -(-n // size)
    order = jax.random.permutation(jax.random.key(0), n)
    rows = jnp.resize(order, (steps_per_epoch, size))
    adam = optax.adam(optax.exponential_decay(RATE, EPOCHS * steps_per_epoch, LAST_RATE / RATE))
    rate = jnp.mean(y.astype(z.dtype), axis=0)

    def loss(params, batch):
        w, b = params
        label = y[batch].astype(z.dtype)
        score = jnp.matmul(z[batch], w, precision=jax.lax.Precision.HIGHEST) + b[None, :]
        balance = jnp.where(label > 0, (0.5 / rate)[None, :], (0.5 / (1 - rate))[None, :])
        cross_entropy = optax.sigmoid_binary_cross_entropy(score, label)
        return jnp.sum(jnp.mean(balance * cross_entropy, axis=0)) + L1 * jnp.sum(jnp.abs(w))

    def step(carry, batch):
        params, state = carry
        return optimizers.update(adam, jax.grad(loss)(params, batch), state, params), None

    params = (jnp.zeros((z.shape[1], y.shape[1]), z.dtype), jnp.zeros((y.shape[1],), z.dtype))
    batches = jnp.tile(rows, (EPOCHS, 1))
    (params, _), _ = jax.lax.scan(step, (params, optimizers.init(adam, params)), batches)
    return params[0]
