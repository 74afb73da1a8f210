"""k-sparse probing (Gurnee et al. 2023; SAEBench; Kantamneni et al. 2025, arXiv:2502.16681).

Can a logistic regression on k latents tell two classes of texts apart? The k latents are those whose means in the two
classes differ most, on training texts only. An audit of these benchmarks finds it the most reliable of them
(arXiv:2605.18229).

    table = read_labelled("sentiment.csv")
    compared = compare(key, dictionary, rows)
    found = k_sparse_probing(Place(model, "blocks.2.resid_post", tokenizer), compared, [table])
    for measure in found.measures(): ...

Classes are balanced in the training part and in the test part, so the accuracy of chance is 0.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.logistic import fit_logistic
from jax_interp.data.labelled import LabelledTexts
from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.evaluation.benchmarks.baselines import RAW, Compared
from jax_interp.dictionaries.evaluation.benchmarks.measure import (
    DICTIONARY,
    RANDOM,
    Estimate,
    Measure,
    mean_over_examples,
)
from jax_interp.dictionaries.evaluation.benchmarks.pooled import Place, Pool, pooled_latents

PROBLEMS = 256
"""Probes that are fitted in one program."""
FEWEST = 10
"""Texts of each class that a data set must have."""


@dataclasses.dataclass(frozen=True)
class ProbingConfig:
    """The settings of `k_sparse_probing`."""

    ks: tuple[int, ...] = (1, 2, 5, 16)
    """Numbers of latents."""
    splits: int = 3
    """Random divisions into training and test texts. Each has another random dictionary."""
    per_class: int = 250
    """Texts of each class that are used, at most. They are the same in all splits."""
    train: float = 0.7
    """The fraction of them that the probes are trained on."""
    pool: Pool = "mean"
    """"mean": latents are averaged over the tokens of a text. "last": those of the last token."""
    C: float = 1.0
    """The inverse strength of the penalty, as in scikit-learn. The latents are not rescaled."""
    dense: bool = True
    """Also fit a probe on all raw values, as a reference that needs no dictionary."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"ks={self.ks}: give numbers of latents of at least 1")
        if self.splits < 1:
            raise UserError(f"splits={self.splits}: at least 1")
        if self.per_class < FEWEST:
            raise UserError(f"per_class={self.per_class}: at least {FEWEST} texts of each class are needed")
        if not 0 < self.train < 1:
            raise UserError(f"train={self.train}: a fraction between 0 and 1")


@dataclasses.dataclass(frozen=True)
class Probing:
    """The predictions of `k_sparse_probing`. Entries are lists [data set][split]."""

    config: ProbingConfig
    data_sets: tuple[str, ...]
    right: dict[str, dict[int, list[list[Bool[np.ndarray, " text"]]]]]
    """By coder and k: whether the prediction of each test text is right."""
    chosen: list[list[Int[np.ndarray, " k"]]]
    """The latents of the dictionary with the largest difference, largest first: as many as the largest k, or as many
    as differ at all."""
    dense: list[list[Bool[np.ndarray, " text"]]] | None
    """`right` of the probe on all raw values."""

    def accuracy(self, coder: str = DICTIONARY, k: int | None = None) -> Float[np.ndarray, " data_set"]:
        """The accuracy on each data set, as a mean over splits. `k` None: the largest."""
        right = self.right[coder][max(self.config.ks) if k is None else k]
        return np.asarray([np.mean([np.mean(x) for x in of_data]) for of_data in right])

    def measures(self) -> Iterator[Measure]:
        """The mean accuracy over data sets, for each k."""
        of = f"{len(self.data_sets)} data set{'s' if len(self.data_sets) > 1 else ''}"
        over = f"{self.config.splits} splits and the test texts of {of}"
        estimate = lambda hits: mean_over_examples(hits, over, seed=self.config.seed)
        for k in self.config.ks:
            estimates = {name: estimate(by_k[k]) for name, by_k in self.right.items()}
            pairs = zip(self.right[DICTIONARY][k], self.right[RANDOM][k], strict=True)
            gain = [[a.astype(float) - b for a, b in zip(*pair, strict=True)] for pair in pairs]
            name = f"probing accuracy, k={k}"
            meaning = "a probe on k latents tells two classes of texts apart; chance is 0.5"
            yield Measure(name, meaning, "higher", estimates, estimate(gain))
        if self.dense is not None:
            reference: dict[str, Estimate] = {RAW: estimate(self.dense)}
            yield Measure("probing accuracy, all", "the same with a probe on all raw values", "higher", reference)


def k_sparse_probing(
    place: Place,
    compared: Compared,
    data: Sequence[LabelledTexts],
    config: ProbingConfig = ProbingConfig(),
    progress: Callable[[str], None] = lambda line: None,
) -> Probing:
    """Train probes on a few latents of a dictionary and of its baselines.

    The texts of one data set are in memory at a time, as one vector of latents each.

    Args:
      place: the model, the value that the dictionary reads, and the tokenizer.
      compared: the dictionary and its baselines. There must be a random dictionary for each split.
      data: data sets of two classes.
      config: the settings.
      progress: called with a line after each data set.

    Raises:
      UserError: there is no data, a data set does not have two classes or has too few texts, or there are fewer random
        dictionaries than splits.
    """
    if not data:
        raise UserError("k_sparse_probing got no data set: give at least one")
    if compared.reseeds < config.splits:
        raise UserError(f"{config.splits} splits need as many random dictionaries, and there are {compared.reseeds}")
    for table in data:
        check_two_classes(table)
    columns = list(compared.columns())
    problems = {name: _Problems(config) for name, _ in columns}
    dense: list[list[np.ndarray]] = []
    chosen = []
    for number, table in enumerate(data, 1):
        texts, y = _used(table, config)
        train = splits_of(y, config)
        coders = [coder for _, of_column in columns for coder in of_column[: config.splits]]
        latents = iter(pooled_latents(place, coders, texts, config.pool))
        for name, of_column in columns:
            own = [next(latents) for _ in of_column[: config.splits]]
            indices = problems[name].add(own if len(own) > 1 else own * config.splits, y, train)
            if name == DICTIONARY:
                chosen.append(indices)
            if name == RAW and config.dense:
                dense.append(_dense(own[0], y, train, config.C))
        progress(f"probing: data set {number} of {len(data)}, {table.name}")
    right = {name: of_column.solve() for name, of_column in problems.items()}
    names = tuple(table.name for table in data)
    return Probing(config, names, right, chosen, dense if config.dense else None)


def check_two_classes(table: LabelledTexts) -> None:
    """Raise UserError if a data set does not have two classes with enough texts."""
    if len(table.classes) != 2:
        shown = ", ".join(table.classes[:5]) + (", ..." if len(table.classes) > 5 else "")
        raise UserError(f"{table.name} has {len(table.classes)} classes ({shown}): a probe tells two classes apart")
    for name, count in table.counts().items():
        if count < FEWEST:
            raise UserError(f"{table.name}: the class {name!r} has {count} texts; at least {FEWEST} are needed")


def _used(table: LabelledTexts, config: ProbingConfig) -> tuple[list[str], Bool[np.ndarray, " text"]]:
    """Equally many texts of both classes, at most `per_class`, and their labels."""
    rng = np.random.default_rng(config.seed)
    per_class = min(config.per_class, int(np.bincount(table.labels).min()))
    rows = [rng.choice(np.flatnonzero(table.labels == c), per_class, replace=False) for c in range(2)]
    y = np.repeat([False, True], per_class)
    return [table.texts[i] for i in np.concatenate(rows)], y


def splits_of(y: Bool[np.ndarray, " text"], config: ProbingConfig) -> Bool[np.ndarray, "split text"]:
    """Which texts are in the training part, for each split. Both classes have equally many texts in each part."""
    train = np.zeros((config.splits, len(y)), bool)
    for split in range(config.splits):
        rng = np.random.default_rng([config.seed, split])
        for label in (False, True):
            members = rng.permutation(np.flatnonzero(y == label))
            train[split, members[: min(max(round(config.train * len(members)), 1), len(members) - 1)]] = True
    return train


class _Problems:
    """The inputs of all probes of one coder: the chosen latents of each data set and split."""

    def __init__(self, config: ProbingConfig) -> None:
        self.config = config
        self.x: list[np.ndarray] = []
        self.used: list[np.ndarray] = []
        self.y: list[np.ndarray] = []
        self.train: list[np.ndarray] = []

    def add(self, latents: Sequence[np.ndarray], y: np.ndarray, train: np.ndarray) -> list[np.ndarray]:
        """Choose latents for each split, from the latents of the coder of this split. Returns them."""
        k, indices = max(self.config.ks), []
        for z, of_split in zip(latents, train, strict=True):
            found, values, used = _choose(jnp.asarray(z), jnp.asarray(y), jnp.asarray(of_split), min(k, z.shape[1]))
            pad = k - found.shape[0]
            self.x.append(np.pad(np.asarray(values), ((0, 0), (0, pad))))
            self.used.append(np.pad(np.asarray(used), (0, pad)))
            self.y.append(y)
            self.train.append(of_split)
            indices.append(np.asarray(found)[np.asarray(used)])
        return indices

    def solve(self) -> dict[int, list[list[np.ndarray]]]:
        """Fit all probes. Returns whether the predictions of the test texts are right, by k: [data set][split]."""
        longest = max(map(len, self.y))
        pad = lambda arrays: np.stack([np.pad(a, [(0, longest - len(a)), *[(0, 0)] * (a.ndim - 1)]) for a in arrays])
        x, y, train = pad(self.x), pad(self.y), pad(self.train)
        used = np.stack(self.used)
        scores = {}
        for k in self.config.ks:
            columns = used & (np.arange(used.shape[1]) < k)[None, :]
            scores[k] = np.concatenate(
                [
                    _fit_and_score(x[part], y[part], train[part], columns[part], self.config.C)
                    for part in _parts(len(x), PROBLEMS)
                ]
            )
        splits = self.config.splits
        right = lambda of_k, i: (of_k[i, : len(self.y[i])] > 0)[~self.train[i]] == self.y[i][~self.train[i]]
        return {
            k: [[right(of_k, i + s) for s in range(splits)] for i in range(0, len(self.y), splits)]
            for k, of_k in scores.items()
        }


def _parts(n: int, size: int) -> Iterator[Int[np.ndarray, " problem"]]:
    """The numbers 0 to n - 1 in parts of at most `size`."""
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))


def _fit_and_score(x: np.ndarray, y: np.ndarray, train: np.ndarray, columns: np.ndarray, C: float) -> np.ndarray:
    x_ = jnp.asarray(x)
    fit = fit_logistic(x_, jnp.asarray(y), jnp.asarray(train, jnp.float32), jnp.asarray(columns), C=C)
    return np.asarray(fit.scores(x_))


def _dense(x: np.ndarray, y: np.ndarray, train: np.ndarray, C: float) -> list[np.ndarray]:
    copies = np.broadcast_to(x, (len(train), *x.shape))
    labels = np.broadcast_to(y, train.shape)
    scores = _fit_and_score(copies, labels, train, np.ones((len(train), x.shape[1]), bool), C)
    return [(s > 0)[~t] == y[~t] for s, t in zip(scores, train, strict=True)]


@partial(jax.jit, static_argnames="k")
def _choose(
    z: Float[Array, "text feature"], y: Bool[Array, " text"], train: Bool[Array, " text"], k: int
) -> tuple[Int[Array, " k"], Float[Array, "text k"], Bool[Array, " k"]]:
    """The k latents whose means over the training texts differ most, their values, and whether they differ at all."""
    weight = lambda rows: rows.astype(z.dtype) / jnp.sum(rows).astype(z.dtype)
    difference = jnp.matmul(weight(train & y) - weight(train & ~y), z, precision=jax.lax.Precision.HIGHEST)
    values, indices = top_k(jnp.abs(difference)[None, :], k)
    return indices[0], z[:, indices[0]], values[0] > 0
