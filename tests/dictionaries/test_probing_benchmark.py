"""k-sparse probing on a world whose features are known, and on latents that are given."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from world_texts import codes, compared, labels_of, oracle, place, texts, world

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.labelled import labelled
from jax_interp.dictionaries.evaluation.benchmarks.measure import DICTIONARY, RANDOM
from jax_interp.dictionaries.evaluation.benchmarks.pooled import pooled_latents
from jax_interp.dictionaries.evaluation.benchmarks.probing import ProbingConfig, k_sparse_probing, splits_of

WORLD = world()
TEXTS, TOKENS = texts(600, 3)
CODES = codes(WORLD, TOKENS.size)
QUICK = ProbingConfig(ks=(1, 4), splits=2, per_class=60)


@pytest.fixture(scope="module")
def found():
    tables = [labelled(f"feature {i}", TEXTS, labels_of(CODES, TOKENS, i)) for i in (0, 1, 14)]
    return k_sparse_probing(place(WORLD), compared(WORLD), tables, QUICK)


def test_one_latent_of_the_true_features_is_enough(found):
    for feature, of_data in zip((0, 1, 14), found.chosen, strict=True):
        assert [indices[0] for indices in of_data] == [feature] * QUICK.splits
    assert (found.accuracy(DICTIONARY, 1) >= 0.98).all()


def test_a_random_dictionary_is_worse_and_the_gain_is_their_difference(found):
    k_1 = next(iter(found.measures()))
    of, random = k_1.estimates[DICTIONARY], k_1.estimates[RANDOM]
    assert random.high < of.low
    assert k_1.gain is not None
    assert k_1.gain.value == pytest.approx(of.value - random.value)
    assert k_1.gain.low > 0
    for estimate in (*k_1.estimates.values(), k_1.gain):
        assert estimate.low <= estimate.value <= estimate.high


def test_all_raw_values_tell_the_classes_apart(found):
    assert [m.name for m in found.measures()][-1] == "probing accuracy, all"
    assert np.mean([np.mean(x) for of_data in found.dense for x in of_data]) > 0.95


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_pooling_counts_no_padding(pool):
    """Texts of several lengths in one batch give what each gives alone."""
    lengths = [1, 2, 5, 8, 8, 11]  # the last is cut at the context of 8
    samples = [" ".join(map(str, range(10 * i, 10 * i + n))) for i, n in enumerate(lengths)]
    got = pooled_latents(place(WORLD), [oracle(WORLD)], samples, pool)[0]
    of_token = oracle(WORLD).encode(place(WORLD).model(jnp.arange(64)[None]))[0]
    for text, row in zip(samples, got, strict=True):
        z = of_token[np.asarray([int(word) for word in text.split()][:8])]
        np.testing.assert_allclose(row, z.mean(0) if pool == "mean" else z[-1], atol=1e-5)


def test_signed_and_dead_latents():
    """The sign of a latent does not matter, dead ones are never chosen, and k may exceed the number of live ones."""
    true = oracle(WORLD)

    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Few:
        encode = staticmethod(lambda x: -true.encode(x).at[..., 2:].set(0.0))
        decode = staticmethod(lambda z: z)

    table = labelled("feature 1", TEXTS, labels_of(CODES, TOKENS, 1))
    few = compared(WORLD, Few(), reseeds=2)
    found = k_sparse_probing(place(WORLD), few, [table], dataclasses.replace(QUICK, ks=(1, 30), dense=False))
    assert found.accuracy(DICTIONARY, 1)[0] >= 0.98
    assert all(set(indices.tolist()) <= {0, 1} for indices in found.chosen[0])
    assert found.accuracy(DICTIONARY, 30)[0] >= 0.98


def test_splits_are_balanced_and_differ():
    y = np.arange(40) < 20
    train = splits_of(y, ProbingConfig(splits=3))
    assert (train[:, y].sum(1) == 14).all()
    assert (train[:, ~y].sum(1) == 14).all()
    assert len({tuple(row) for row in train.tolist()}) == 3


def test_latents_are_chosen_on_training_texts_only():
    """Labels without any relation to the texts: a choice on the test texts would lift the accuracy above chance."""
    rng = np.random.default_rng(0)
    noise = labelled("noise", TEXTS, rng.permutation(np.arange(600) % 2).tolist())
    config = ProbingConfig(ks=(4,), splits=3, per_class=300, dense=False)
    found = k_sparse_probing(place(WORLD), compared(WORLD), [noise], config)
    right = np.concatenate(found.right[DICTIONARY][4][0])
    assert abs(right.mean() - 0.5) < 4 * 0.5 / np.sqrt(180)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1] * 600, "has 1 classes"),
        ([i % 3 for i in range(600)], "has 3 classes"),
        ([i < 9 for i in range(600)], "'True' has 9 texts; at least 10"),
    ],
)
def test_labels_without_two_classes_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        k_sparse_probing(place(WORLD), compared(WORLD), [labelled("x", TEXTS, labels)], QUICK)


def test_what_is_missing_is_refused():
    table = labelled("x", TEXTS, [i % 2 for i in range(600)])
    with pytest.raises(UserError, match="no data set"):
        k_sparse_probing(place(WORLD), compared(WORLD), [], QUICK)
    with pytest.raises(UserError, match="2 splits need as many random dictionaries, and there are 1"):
        k_sparse_probing(place(WORLD), compared(WORLD, reseeds=1), [table], QUICK)
    with pytest.raises(UserError, match="no latent of the dictionary fires"):
        compared(WORLD, dataclasses.replace(oracle(WORLD), b_enc=jnp.full((20,), -1e6)))
    with pytest.raises(UserError, match="pool='max'"):
        pooled_latents(place(WORLD), [oracle(WORLD)], ["1"], "max")
    for change in ({"ks": ()}, {"ks": (0,)}, {"splits": 0}, {"train": 1.0}, {"per_class": 3}):
        with pytest.raises(UserError):
            ProbingConfig(**change)
