"""What alignment finds in networks whose mechanism is known, beside its controls; resumed, sharded and swept runs."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boolean_task import RIGHT, network, task
from equality_task import MIXED, equality_data, equality_net

from jax_interp.circuits.causal_variables import (
    DAS,
    AlignmentConfig,
    BoundlessDAS,
    Coordinates,
    Latents,
    LearnedMask,
    Location,
    Subspace,
    SweepOver,
    align,
    alignment_sweep,
    controlled_alignment,
    cosines,
    interchange,
    interchange_accuracy,
    span,
)
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.controls import Basis
from jax_interp.training import SaveTo
from jax_interp.training.sharding import make_mesh

HIDDEN = Location("hidden")
NET = equality_net()
TRAIN, TEST = (equality_data("left", seed=seed, changed=0.5) for seed in (0, 1))
LEFT, RIGHT_SIDE = (span(NET.Q[:, i]) for i in range(2))
SHORT = AlignmentConfig(DAS(2), steps=20, batch=32)


@pytest.mark.parametrize("method", [DAS(1), BoundlessDAS(largest=6), LearnedMask(rotation=4, l1=0.3)], ids=str)
def test_the_subspace_of_the_variable_is_found(method):
    found = align(NET, TRAIN, HIDDEN, AlignmentConfig(method, steps=300))
    result = interchange_accuracy(NET, TEST, found.locations, found.features)
    assert result.accuracy.value == 1.0
    assert float(cosines(found.features[0], LEFT)[0]) > 0.99


def test_two_variables_get_orthogonal_subspaces_at_one_location():
    train, test = (equality_data(["left", "right"], seed=seed, changed=0.8) for seed in (0, 1))
    found = align(NET, train, [HIDDEN, HIDDEN], AlignmentConfig(DAS(1), steps=300))
    assert interchange_accuracy(NET, test, found.locations, found.features).accuracy.value == 1.0
    left, right = found.features
    assert float(cosines(left, LEFT)[0]) > 0.98
    assert float(cosines(right, RIGHT_SIDE)[0]) > 0.98
    np.testing.assert_allclose(left.basis.T @ right.basis, 0, atol=1e-5)


def test_a_variable_that_the_network_does_not_have_is_not_found():
    train, test = (equality_data("mixed", seed=seed, changed=0.5, causal_model=MIXED) for seed in (0, 1))
    found = align(NET, train, HIDDEN, AlignmentConfig(DAS(2), steps=300))
    result = interchange_accuracy(NET, test, found.locations, found.features)
    assert result.where_changed.accuracy.value < 0.7
    assert result.accuracy.high < 0.8


def test_controls_stand_beside_the_result():
    table = controlled_alignment(NET, TRAIN, TEST, HIDDEN, AlignmentConfig(DAS(1), steps=150), seeds=2)
    iia = dict(zip(table.axes["intervention"], table.values[:, 0]))
    assert iia["aligned"] == 1.0
    assert iia["nothing"] == 0.5  # half of the pairs keep their answer
    # Everything is exchanged: the answer is that of the source, which is the label only where the right sides agree.
    objects, other = np.asarray(TEST.base), np.asarray(TEST.sources[0])
    assert iia["whole value"] == ((objects[:, 2] == objects[:, 3]) == (other[:, 2] == other[:, 3])).mean()
    low = table.values[0, table.axes["figure"].index("low")]
    assert 0.98 < low < 1.0
    assert max(iia[name] for name in ("random features", "shuffled labels", "untrained model")) < low - 0.1


@pytest.mark.parametrize("kind", ["dictionary", "directions"])
def test_a_mask_over_given_features_chooses_the_one_of_the_variable(kind):
    given = Basis(NET.Q.T, jnp.zeros(12)) if kind == "dictionary" else NET.Q
    found = align(NET, TRAIN, HIDDEN, AlignmentConfig(LearnedMask(l1=0.3), steps=200), basis=given)
    assert isinstance(found.features[0], Latents if kind == "dictionary" else Subspace)
    mask = np.asarray(found.features[0].mask)
    # directions 10 and 11 are never used: nothing depends on them
    np.testing.assert_array_equal(mask, np.eye(12)[0])


def test_what_a_dictionary_does_not_reconstruct_stays():
    """Only the latent of `left` exists: all the rest is error, and is kept from the base."""
    sae = Basis(NET.Q[:, :1].T, jnp.ones(12))
    one = Latents(sae, jnp.ones(1))
    assert interchange_accuracy(NET, TEST, HIDDEN, one).accuracy.value == 1.0
    kept = interchange(NET, TEST, [HIDDEN], [Latents(sae, jnp.zeros(1))])
    np.testing.assert_array_equal(kept, NET(TEST.base))
    np.testing.assert_allclose(
        interchange(NET, TEST, [HIDDEN], [one]), interchange(NET, TEST, [HIDDEN], [LEFT]), atol=1e-5
    )


def test_a_run_that_was_cut_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path):
    saving = SaveTo(tmp_path / "run", every=10)
    whole = align(NET, TRAIN, HIDDEN, SHORT, run=saving)
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name.split("_")[-1]))
    shutil.rmtree(checkpoints[-1])
    resumed = align(NET, TRAIN, HIDDEN, SHORT, run=saving)
    np.testing.assert_array_equal(whole.features[0].basis, resumed.features[0].basis)
    with pytest.raises(UserError, match="config"):
        align(NET, TRAIN, HIDDEN, dataclasses.replace(SHORT, learning_rate=1.0), run=saving)


@pytest.mark.parametrize("explicit", [False, True])
def test_pairs_split_over_devices_give_what_one_device_gives(explicit):
    model, train = network(), task(RIGHT, "A", 64, changed=0.5)
    place = Location("blocks.0.resid_post", "here")
    one = align(model, train, place, SHORT)
    several = align(model, train, place, SHORT, place=make_mesh(data=4, explicit=explicit))
    np.testing.assert_allclose(one.features[0].basis, several.features[0].basis, atol=1e-4)


def test_each_cell_of_a_sweep_is_a_run_of_its_own():
    model, train, test = network(), task(RIGHT, "A", 64, changed=0.5), task(RIGHT, "A", 50, seed=1, changed=0.5)
    grid = alignment_sweep(
        model, train, test, SweepOver("resid_post", ("here", None), dimensions=(1, 2), seeds=2), SHORT, cells=7
    )
    assert grid.shape == (4, 3, 2, 2, 2)
    for layer, seed in ((0, 0), (1, 1), (2, 0)):
        found = align(
            model, train, Location(f"blocks.{layer}.resid_post", "here"), dataclasses.replace(SHORT, seed=seed)
        )
        expected = interchange_accuracy(model, test, found.locations, found.features).accuracy.value
        np.testing.assert_allclose(
            grid.sel(intervention=0, layer=layer, dimension=1, seed=seed).values, expected, atol=0.021
        )
    np.testing.assert_allclose(grid.sel(intervention=2).values, 0.5)  # nothing is exchanged


def test_what_is_refused():
    data = equality_data(["left", "right"], 64)
    for method, locations, train, basis, message in (
        (DAS(13), HIDDEN, TRAIN, None, "has 12 entries"),
        (DAS(1), HIDDEN, TRAIN, NET.Q, "leave out basis="),
        (DAS(1), [HIDDEN], data, None, "for 2 sources"),
        (DAS(7), [HIDDEN, HIDDEN], data, None, "dimension=14"),
        (BoundlessDAS(), [HIDDEN, HIDDEN], data, None, "learns one"),
        (LearnedMask(), HIDDEN, TRAIN, jnp.ones((12, 2)), "not orthonormal"),
        (LearnedMask(), HIDDEN, TRAIN, Basis(jnp.eye(5), jnp.zeros(5)), "5|12"),
        (DAS(1), HIDDEN, TRAIN.rows(slice(8)), None, "fewer than batch"),
    ):
        with pytest.raises(UserError, match=message):
            align(NET, train, locations, AlignmentConfig(method), basis=basis)
    with pytest.raises(UserError, match="fall"):
        LearnedMask(first_temperature=0.1, last_temperature=1.0)
    with pytest.raises(UserError, match="one source"):
        alignment_sweep(NET, data, data, SweepOver("hidden"), AlignmentConfig(DAS(1)))


def test_a_mask_of_neurons_exchanges_exactly_these():
    x, y = jax.random.normal(jax.random.key(0), (2, 5, 12), jnp.bfloat16)
    mask = jnp.arange(12) % 3 == 0
    mixed = Coordinates(mask.astype(jnp.float32)).exchange(x, y)
    assert mixed.dtype == jnp.float32
    np.testing.assert_array_equal(mixed, jnp.where(mask[None], y, x).astype(jnp.float32))
