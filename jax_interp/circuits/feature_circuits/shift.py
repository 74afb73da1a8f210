"""SHIFT: find what a classifier should not use, ablate it, train again (Marks et al. 2024, arXiv:2403.19647, §5).

The labels cannot tell the intended from the spurious attribute: on all training texts both have the same value. SHIFT

    1. trains a linear probe on these labels,
    2. finds the features with the largest effects on the probe (zero ablation; no labels besides the training labels),
    3. asks a judge which of them belong to the spurious attribute,
    4. ablates these in the model, error kept, and
    5. trains the probe again on the model without them, on the same labels.

Accuracies on balanced texts tell what a classifier uses: 0.5 for an attribute that it does not use. They stand beside
those of the probe itself, of random features, of neurons with the same judge, and of a probe that is trained on
balanced texts, which is what the labels could not give (oracle).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.contrast import Contrast, make_contrast
from jax_interp.circuits.feature_circuits.attributed_texts import AttributedTexts
from jax_interp.circuits.feature_circuits.circuit import FeatureCircuit, random_nodes, select_nodes
from jax_interp.circuits.feature_circuits.classifier import Classifier, mean_over_tokens
from jax_interp.circuits.feature_circuits.effects import EffectsConfig, FeatureEffects, feature_effects
from jax_interp.circuits.feature_circuits.evaluation import KeepFeatures
from jax_interp.circuits.feature_circuits.judges import Candidates, Judge
from jax_interp.circuits.feature_circuits.sites import ERROR, feature_sites, latents_of
from jax_interp.circuits.metrics import LogitDifference
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.logistic import fit_logistic
from jax_interp.dictionaries.evaluation.downstream import Identity
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, SparseCoder, as_sparse_coder
from jax_interp.surgery import Tapped, at, edit, values_at
from jax_interp.surgery.contract import Model
from jax_interp.surgery.value_tokens import wide
from jax_interp.surgery.verbs import without_reads

MEASURES = ("intended", "spurious", "worst group")


@dataclasses.dataclass(frozen=True)
class ShiftConfig:
    """How SHIFT is done.

    Args:
      address: the value that the probe reads.
      n: the number of features that the judge sees, of the largest effects.
      texts: the number of training texts on which effects are computed.
      examples: the number of examples of each feature that the judge sees.
      first: the number of first tokens of each text that the probe leaves out, such as 1 for BOS.
      C: the inverse strength of the probe's L2 penalty.
      effects: how effects are computed. Features are ablated to zero at all positions.
      batch: texts in one program.
      seed: draws the texts for the effects, and the random features.
    """

    address: str
    n: int = 60
    texts: int = 100
    examples: int = 20
    first: int = 0
    C: float = 100.0
    effects: EffectsConfig = dataclasses.field(default_factory=lambda: EffectsConfig("integrated", "zero"))
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n", "texts", "examples", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.effects.ablation != "zero" or self.effects.positions != "sum":
            raise UserError("SHIFT ablates features to zero at all positions: effects need ablation='zero' and 'sum'")


@dataclasses.dataclass(frozen=True)
class Shifted:
    """What SHIFT did.

    Args:
      scores: axes method, measure: accuracy for the intended and for the spurious attribute on the test texts, and for
        the intended attribute in the worst of the four groups.
      candidates: what the judge saw.
      ablated: which of the candidates were ablated.
      original: the classifier before.
      classifier: the classifier that was trained again, on the model without the ablated features.
    """

    scores: Labelled
    candidates: Candidates
    ablated: Bool[np.ndarray, " feature"]
    original: Classifier
    classifier: Classifier


def train_classifier(
    model: Model, texts: AttributedTexts, labels: Bool[np.ndarray, " text"], config: ShiftConfig
) -> Classifier:
    """Fit a linear probe on the mean of a value over the tokens of each text.

    Args:
      model: a model, under surgery or not.
      texts: the texts.
      labels: what to tell, such as `texts.intended`.
      config: where the probe reads, and its penalty.
    """
    x = jnp.asarray(_means(model, texts, config))[None]
    probe = fit_logistic(x, jnp.asarray(labels, bool)[None], C=config.C)
    return Classifier(without_reads(model), probe.weight[0], probe.intercept[0], config.address, config.first)


def classifier_effects(
    classifier: Classifier,
    texts: AttributedTexts,
    labels: Bool[np.ndarray, " text"],
    dictionaries: Mapping[str, EncoderDecoder],
    config: ShiftConfig,
) -> FeatureEffects:
    """The effect of each feature on the score of the right class. Negative: the classifier uses the feature."""
    return feature_effects(classifier, classifier_contrast(texts, labels), dictionaries, config.effects)


def classifier_contrast(texts: AttributedTexts, labels: Bool[np.ndarray, " text"]) -> Contrast:
    """The texts with the metric: the logit of the right class minus that of the other one. There are no pairs."""
    answer = jnp.asarray(labels, jnp.int32)
    return make_contrast(texts.tokens, texts.tokens, LogitDifference(answer, 1 - answer, pos=0), mask=texts.mask)


def shift(
    model: Model,
    train: AttributedTexts,
    test: AttributedTexts,
    dictionaries: Mapping[str, EncoderDecoder],
    judge: Judge,
    config: ShiftConfig,
    *,
    balanced: AttributedTexts | None = None,
    concepts: Int[np.ndarray, "concept pos"] | None = None,
) -> Shifted:
    """Train a classifier on labels that confound two attributes, and remove the spurious one by its features.

    Args:
      model: a model, under surgery or not.
      train: texts in which both attributes always have the same value.
      test: texts of all four groups, none of them in `train`. They are used for the accuracies only.
      dictionaries: the dictionaries whose features are candidates, at the value that the probe reads and before it.
      judge: decides which features to ablate.
      config: the probe, and how many features the judge sees.
      balanced: texts of all four groups for the oracle, none of them in `test`. None: there is no oracle.
      concepts: tokens that name concepts of the intended attribute, for a concept bottleneck: a probe on the
        projections to the mean value of each. None: there is none.

    Returns:
      The accuracies of: original; SHIFT; SHIFT + retrain; random features + retrain (as many); neurons and neurons +
      retrain (the same procedure with the coordinates of the same values); concept bottleneck; oracle.

    Raises:
      UserError: `train` has a text in which the attributes differ, `test` lacks a group, or the judge's answer has
        another length.

    Example:
        found = shift(model, train, test, saes, judge_by_list(few), ShiftConfig("blocks.1.resid_post"))
        found.scores
    """
    if (train.intended != train.spurious).any():
        raise UserError("in some training texts the attributes differ: give train.agreeing(), the setting of SHIFT")
    if min(test.groups().values()) < 1:
        raise UserError(f"the test texts have the groups {test.groups()} (intended, spurious): all four are needed")
    rng = np.random.default_rng(config.seed)
    labels, accuracy = train.intended, partial(_accuracies, test, config)
    original = train_classifier(model, train, labels, config)
    some = train.rows(np.sort(rng.choice(len(train), min(config.texts, len(train)), replace=False)))
    sites = feature_sites(model, classifier_contrast(some, some.intended), dictionaries)
    coders = dict(zip(sites.addresses, sites.coders, strict=True))
    neurons = {address: Identity() for address in coders}

    def trained(changed: Model) -> Classifier:
        return train_classifier(changed, train, labels, config)

    effects, candidates = _candidates(original, some, coders, config)
    ablated = _decision(judge, candidates)
    without = ablate_features(model, coders, candidates.circuit, ablated)
    again = trained(without)
    drawn = _random_features(effects, int(ablated.sum()), rng)
    random = ablate_features(model, coders, drawn, np.ones(drawn.n_nodes, bool))
    of_neurons = _candidates(original, some, neurons, config)[1]
    by_neurons = ablate_features(model, neurons, of_neurons.circuit, _decision(judge, of_neurons))
    rows = {
        "original": accuracy(original),
        "SHIFT": accuracy(dataclasses.replace(original, model=without)),
        "SHIFT + retrain": accuracy(again),
        "random features + retrain": accuracy(trained(random)),
        "neurons": accuracy(dataclasses.replace(original, model=by_neurons)),
        "neurons + retrain": accuracy(trained(by_neurons)),
    }
    if concepts is not None:
        rows["concept bottleneck"] = accuracy(_concept_bottleneck(model, train, concepts, config))
    if balanced is not None:
        rows["oracle"] = accuracy(train_classifier(model, balanced, balanced.intended, config))
    scores = Labelled(np.stack(list(rows.values())), {"method": list(rows), "measure": MEASURES}, "accuracy")
    return Shifted(scores, candidates, ablated, original, again)


def over_seeds(runs: Sequence[Shifted]) -> Labelled:
    """The accuracies of several runs of `shift`. Axes: seed, method, measure. `.mean("seed")`, `.std("seed")`.

    Raises:
      UserError: there is no run, or the runs have different methods.
    """
    if not runs or len({tuple(run.scores.axes["method"]) for run in runs}) > 1:
        raise UserError("give one or more runs with the same methods")
    values = np.stack([run.scores.values for run in runs])
    return Labelled(values, {"seed": range(len(runs)), **runs[0].scores.axes}, "accuracy")


def ablate_features(
    model: Model,
    dictionaries: Mapping[str, EncoderDecoder],
    circuit: FeatureCircuit,
    chosen: Bool[np.ndarray, " node"],
) -> Tapped:
    """The model in which some features of a circuit are 0 at all positions. The errors stay.

    Args:
      model: a model, under surgery or not.
      dictionaries: the dictionaries by address, as in `circuit.addresses`.
      circuit: the features.
      chosen: which of its nodes to ablate. An error is never ablated.
    """
    edits = []
    for number, (address, width) in enumerate(zip(circuit.addresses, circuit.widths, strict=True)):
        features = circuit.feature[chosen & (circuit.site == number) & (circuit.feature != ERROR)]
        if len(features):
            keep = np.ones(width, bool)
            keep[features] = False
            coder, zero = as_sparse_coder(dictionaries[address]), jnp.zeros(())
            edits.append(at(address, KeepFeatures(coder, jnp.asarray(keep), jnp.ones((), bool), zero, zero)))
    return edit(model, *edits)


def _candidates(
    classifier: Classifier, texts: AttributedTexts, coders: Mapping[str, EncoderDecoder], config: ShiftConfig
) -> tuple[FeatureEffects, Candidates]:
    """The effects on a classifier, and the features that the judge sees."""
    effects = classifier_effects(classifier, texts, texts.intended, coders, config)
    circuit = select_nodes(_without_errors(effects), n=config.n)
    of_texts = partial(_latents, classifier.model, coders, circuit, config.batch)
    rows = of_texts(texts).reshape(-1, circuit.n_nodes)
    order = np.argsort(-np.abs(rows), axis=0, kind="stable")[: config.examples].T
    text, pos = np.divmod(order, texts.tokens.shape[1])
    examples = np.abs(np.take_along_axis(rows.T, order, axis=1))

    def mean_latents(other: AttributedTexts) -> Float[np.ndarray, "text feature"]:
        real = np.ones(other.tokens.shape, bool) if other.mask is None else other.mask
        return of_texts(other).sum(axis=1) / real.sum(axis=1)[:, None]

    return effects, Candidates(circuit, examples, text, pos, texts.tokens[text, pos], mean_latents)


def _without_errors(effects: FeatureEffects) -> FeatureEffects:
    return dataclasses.replace(effects, errors=tuple(np.zeros_like(e) for e in effects.errors))


def _random_features(effects: FeatureEffects, n: int, rng: np.random.Generator) -> FeatureCircuit:
    return random_nodes(_without_errors(effects), n, rng)


def _decision(judge: Judge, candidates: Candidates) -> Bool[np.ndarray, " feature"]:
    answer = np.asarray(judge(candidates))
    if answer.shape != (candidates.circuit.n_nodes,) or answer.dtype != bool:
        raise UserError(
            f"the judge returned {answer.dtype}{list(answer.shape)} for {candidates.circuit.n_nodes} features: it must "
            "return one bool for each"
        )
    return answer


def _concept_bottleneck(
    model: Model, train: AttributedTexts, concepts: Int[np.ndarray, "concept pos"], config: ShiftConfig
) -> Classifier:
    """A probe on the projections to the mean values of concepts. It is a linear probe on the value too."""
    concepts = np.asarray(concepts)
    absent = np.zeros(len(concepts), bool)
    vectors = _means(model, AttributedTexts(concepts, absent, absent), config)
    vectors = vectors - vectors.mean(axis=0)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    x = jnp.asarray(_means(model, train, config) @ vectors.T)[None]
    probe = fit_logistic(x, jnp.asarray(train.intended)[None], C=config.C)
    weight = probe.weight[0] @ jnp.asarray(vectors)
    return Classifier(without_reads(model), weight, probe.intercept[0], config.address, config.first)


def _accuracies(test: AttributedTexts, config: ShiftConfig, classifier: Classifier) -> tuple[float, float, float]:
    """Accuracy for the intended and the spurious attribute, and for the intended one in the worst group."""
    x = _means(classifier.model, test, config)
    found = x @ np.asarray(classifier.weight) + float(classifier.bias) > 0
    group = 2 * test.intended.astype(int) + test.spurious
    right = found == test.intended
    return float(right.mean()), float((found == test.spurious).mean()), min(right[group == g].mean() for g in range(4))


def _means(model: Model, texts: AttributedTexts, config: ShiftConfig) -> Float[np.ndarray, "text d"]:
    """The mean of the value that the probe reads, over the tokens of each text.

    Raises:
      UserError: a mean is not finite: no token of a text is left, or the model has NaN.
    """
    plain = without_reads(model)
    run = partial(_mean_batch, plain, address=config.address, first=config.first)
    x = np.concatenate([np.asarray(run(*part)) for part in _parts(texts, config.batch)])
    if not np.isfinite(x).all():
        raise UserError(
            f"the mean of {config.address!r} is not finite: a text has at most {config.first} tokens, or NaN"
        )
    return x


def _parts(texts: AttributedTexts, size: int) -> Iterator[tuple[Array, Array | None]]:
    """Tokens and masks of at most `size` texts."""
    for start in range(0, len(texts), size):
        part = slice(start, start + size)
        mask = None if texts.mask is None else jnp.asarray(texts.mask[part])
        yield jnp.asarray(texts.tokens[part]), mask


@partial(jax.jit, static_argnames=("address", "first"))
def _mean_batch(model: Model, tokens: Array, mask: Array | None, *, address: str, first: int) -> Float[Array, "text d"]:
    kwargs = {} if mask is None else {"mask": mask}
    value = values_at(model, address)(tokens, **kwargs)[address]
    return mean_over_tokens(wide(value), mask, first)


def _latents(
    model: Model,
    coders: Mapping[str, EncoderDecoder],
    circuit: FeatureCircuit,
    batch: int,
    texts: AttributedTexts,
) -> Float[np.ndarray, "text pos node"]:
    """The latents of the nodes of a circuit at each token; 0 at padding."""
    numbers = [i for i in range(len(circuit.addresses)) if (circuit.site == i).any()]
    places = tuple(circuit.addresses[i] for i in numbers)
    chosen = [as_sparse_coder(coders[address]) for address in places]
    features = [jnp.asarray(circuit.feature[circuit.site == i]) for i in numbers]
    run = partial(_latents_batch, without_reads(model), chosen, features, addresses=places)
    return np.concatenate([np.asarray(run(*part)) for part in _parts(texts, batch)])


@partial(jax.jit, static_argnames="addresses")
def _latents_batch(
    model: Model,
    coders: list[SparseCoder],
    features: list[Array],
    tokens: Array,
    mask: Array | None,
    *,
    addresses: tuple[str, ...],
) -> Float[Array, "text pos node"]:
    kwargs = {} if mask is None else {"mask": mask}
    values = values_at(model, *addresses)(tokens, **kwargs)
    found = [latents_of(c, values[a])[..., f] for c, a, f in zip(coders, addresses, features, strict=True)]
    latents = jnp.concatenate(found, axis=-1)
    return latents if mask is None else jnp.where(mask[..., None], latents, jnp.zeros_like(latents))
