"""Laws that every registered kind of probe keeps. A new kind is tested as soon as it is registered.

`EXAMPLES` has data for each pair of what a kind takes and what it predicts. `FAST` shortens the training of slow kinds.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.probes import KINDS, All, LabelledTokens, Last, Sequences, Vectors, fit_probes, load_probes, save_probes

N, POS, D, CLASSES = 48, 5, 6, 3
FAST: dict[str, dict] = {"CCS": {"steps": 100, "tries": 3}, "KSparse": {"k": 3}}
"""Settings of kinds in these tests, where the defaults take long or do not fit the data."""
LOOSE: dict[str, float] = {"CCS": 2e-2}
"""How far scores may differ after a reordering, in units of their spread, for kinds found by a fixed number of steps.
The others: 1e-3."""
UNIT_MATTERS = {"CCS"}
"""Kinds whose decisions depend on the unit of the activations: they are penalised, or take steps of a fixed size."""


def data_of(target: str) -> LabelledTokens:
    """Examples of alternating classes; the classes of first examples alternate from pair to pair."""
    number = np.arange(N)
    classes = CLASSES if target == "classes" else 2
    labels = number % CLASSES if target == "classes" else (number + number // 2) % 2
    labels = np.linspace(-1, 1, N) if target == "number" else labels
    names = () if target == "number" else tuple(f"class {c}" for c in range(classes))
    mask = np.arange(POS)[None, :] < 3 + number[:, None] % (POS - 2)
    token_labels = None if target == "number" else np.where(mask, labels[:, None], -1)
    return LabelledTokens(
        "planted", np.zeros((N, POS), np.int32), mask, mask, labels.astype(np.float32 if not names else np.int32),
        names, pairs=number.reshape(-1, 2), token_labels=token_labels,
    )  # fmt: skip


def example(takes: str, target: str, seed: int = 0) -> Vectors | Sequences:
    """Activations in which the labels can be read, with noise."""
    rng, data = np.random.default_rng(seed), data_of(target)
    directions = rng.normal(size=(max(CLASSES, 2), D))
    signal = 3 * data.labels[:, None] * directions[:1] if target == "number" else directions[data.labels]
    if takes == "sequences":
        x = signal[:, None, :] + 0.8 * rng.normal(size=(N, POS, D))
        return Sequences(
            data, All(), data.readable, {"x": np.where(data.readable[:, :, None], x, 0).astype(np.float32)}
        )
    x = signal + 0.8 * rng.normal(size=(N, D))
    return Vectors(data, (Last(),), {"x": x[None].astype(np.float32)})


EXAMPLES = {
    (takes, target): functools.partial(example, takes, target)
    for takes in ("rows", "pairs", "sequences")
    for target in ("binary", "classes", "number")
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind, the activations that it is fitted on, and the probes that were found."""

    kind: object
    on: Vectors | Sequences
    fitted: object

    @property
    def name(self) -> str:
        return type(self.kind).__name__

    def refit(self, **changes):
        return fit_probes(self.kind, **{"on": self.on} | changes)

    def scores(self, fitted) -> np.ndarray:
        return np.asarray(fitted.scores(self.on).values)

    def with_x(self, change) -> Vectors | Sequences:
        return dataclasses.replace(self.on, values={site: change(x) for site, x in self.on.values.items()})


@functools.cache
def case(name: str) -> Case:
    kind = KINDS[name](**FAST.get(name, {}))
    on = EXAMPLES[kind.takes, kind.target]()
    return Case(kind, on, fit_probes(kind, on))


LONG = ("AttentionProbe", "KSparse", "MLP", "StreamedLogistic", "TokenProbe")
"""Kinds that are fitted in many steps. Some of their laws are slow tests."""
OR_SLOW = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in KINDS.names()]


@pytest.fixture(params=KINDS.names())
def made(request) -> Case:
    return case(request.param)


def alike(case: Case, one: np.ndarray, other: np.ndarray, tolerance: float = 1e-3) -> None:
    """Scores are the same up to rounding."""
    assert np.isfinite(one).all()
    np.testing.assert_allclose(one, other, atol=LOOSE.get(case.name, tolerance) * np.std(other))


def same(one, other) -> None:
    """The same structure and the same bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_it_finds_what_is_planted(made):
    """Scores separate the labels better than chance on rows of another draw."""
    new = EXAMPLES[made.kind.takes, made.kind.target](seed=0)
    scores, labels = np.asarray(made.fitted.scores(new).values), new.data.labels
    assert np.isfinite(scores).all()
    scores = scores.reshape(-1, *scores.shape[6:])[0]
    if made.kind.target == "classes":
        assert (scores.argmax(-1) == labels).mean() > 0.6
    elif made.kind.target == "number":
        assert np.corrcoef(scores, labels)[0, 1] > 0.7
    else:
        ranks = scores.argsort().argsort()[labels == 1].sum() - (labels == 1).sum() * ((labels == 1).sum() - 1) / 2
        assert ranks / ((labels == 1).sum() * (labels == 0).sum()) > 0.7


@pytest.mark.parametrize("made", OR_SLOW, indirect=True)
def test_many_in_one_program_are_those_of_single_ones(made):
    train = np.ones((2, N), bool)
    train[1, : N // 3] = False
    labels = {"own": made.on.data.labels, "turned": np.roll(made.on.data.labels, 2)}
    many = made.refit(train=train, labels=labels, seeds=(0, 1))
    for split in (0, 1):
        for name, values in labels.items():
            one = made.refit(train=train[split], labels={name: values}, seeds=(1,))
            of_many = made.scores(many.sel(labels=name, split=split, seed=1))
            alike(made, of_many, made.scores(one))


def test_a_row_of_weight_0_changes_nothing_whatever_it_holds(made):
    train = np.ones(N, bool)
    train[[2, 3, 10, 11]] = False
    plain = made.refit(train=train)

    def spoilt(x):
        x = x.copy()
        rows = x if made.kind.takes == "sequences" else x[0]
        rows[[2, 3]], rows[[10, 11]] = np.nan, 1e30
        return x

    found = made.refit(on=made.with_x(spoilt), train=train)
    alike(made, made.scores(found), made.scores(plain), 1e-6)


def test_the_order_of_rows_does_not_matter(made):
    order = np.random.default_rng(0).permutation(N // 2)
    order = np.stack([2 * order, 2 * order + 1], axis=1).ravel()  # pairs stay together
    alike(made, made.scores(made.refit(on=made.on.take(order))), made.scores(made.fitted))


def test_the_unit_of_the_activations_does_not_matter(made):
    """Decisions stay; scores may have the unit of the activations."""
    if made.name in UNIT_MATTERS or made.kind.strengths:
        pytest.skip("its penalty or its steps have a unit")
    bigger = made.with_x(lambda x: 64 * x)
    scores = np.asarray(made.refit(on=bigger).scores(bigger).values)
    unit = np.std(scores) / np.std(made.scores(made.fitted))
    alike(made, scores / unit, made.scores(made.fitted))


def test_one_class_and_activations_that_are_not_finite_are_refused(made):
    if made.kind.target != "number":
        with pytest.raises(UserError, match="one class"):
            made.refit(train=made.on.data.labels == 0)
    spoilt = made.with_x(lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, np.nan, x))
    with pytest.raises(UserError, match=r"finite|NaN"):
        made.refit(on=spoilt)


@pytest.mark.parametrize("made", OR_SLOW, indirect=True)
def test_half_precision_is_computed_in_float32(made):
    rounded = made.with_x(lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32))
    half = made.with_x(lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16)))
    alike(made, made.scores(made.refit(on=half)), made.scores(made.refit(on=rounded)))


def test_what_is_saved_is_what_is_loaded(made, tmp_path):
    loaded = load_probes(save_probes(tmp_path / "probes.safetensors", made.fitted))
    same(loaded.probes, made.fitted.probes)
    assert (loaded.kind, loaded.axes, loaded.classes) == (made.fitted.kind, made.fitted.axes, made.fitted.classes)
    np.testing.assert_array_equal(made.scores(loaded), made.scores(made.fitted))


@pytest.mark.parametrize("made", OR_SLOW, indirect=True)
def test_scores_work_under_jit_grad_and_vmap(made):
    """One example by itself has the score that it has in a batch, and the score has a finite gradient."""
    probe = jax.tree.map(lambda a: a[(0,) * 6], made.fitted.probes)
    on, rows = made.on, jnp.asarray(next(iter(made.on.values.values())))
    x = rows if made.kind.takes == "sequences" else rows[0]
    read = (jnp.asarray(on.read),) if isinstance(on, Sequences) else ()
    whole = probe.score(x, *read)
    np.testing.assert_allclose(jax.jit(lambda p, x, *r: p.score(x, *r))(probe, x, *read), whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.vmap(probe.score)(x, *read), whole, rtol=1e-4, atol=1e-4)
    gradient = jax.grad(lambda x: jnp.sum(probe.score(x, *read)))(x)
    assert np.isfinite(gradient).all()
    if probe.reads == "vectors":
        half = probe.score(x.astype(jnp.bfloat16))
        assert half.dtype == jnp.float32
