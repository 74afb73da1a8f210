"""Feature data keeps its bits on disk, and refuses arrays that do not belong together."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.tensor_files import read_described, write_described
from jax_interp.dashboards.feature_data import Examples, FeatureData, Histogram, Neighbours, TokenEffects
from jax_interp.dashboards.windows import Windows


def feature_data(seed: int = 0, units: int = 3) -> FeatureData:
    rng = np.random.default_rng(seed)
    number = lambda *shape: rng.standard_normal((units, *shape)).astype(np.float32)
    whole = lambda high, *shape: rng.integers(0, high, (units, *shape))
    windows = Windows(number(2), whole(9, 2, 5), number(2, 5), None, 3, whole(9, 2, 2))
    windows.tokens[0, 1] = -1
    effects = number(2, 5)
    effects[0, 1] = np.nan
    data = FeatureData(
        np.asarray([5, 2, 9][:units]), "feature", "A <title>", "toy", "embed", "words", 1000, whole(1000),
        number(), number(), number(), Histogram(np.linspace(0, 1, 5), whole(7, 4)),
        (Examples("top", windows, effects), Examples("uniform", windows, None, effects)),
        TokenEffects(whole(9, 4), number(4)), TokenEffects(whole(9, 4), number(4)),
        Histogram(number(5), whole(7, 4)), Neighbours(whole(20, 2), number(2), "cosine"), None, number(),
    )  # fmt: skip
    return data.with_strings({i: f"<{i}>" for i in range(20)})


def test_what_is_written_is_read(tmp_path):
    data = feature_data()
    found = FeatureData.read(data.write(tmp_path / "pages"))
    before, after = dict(data.arrays()), dict(found.arrays())
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name, strict=True)
    plain = lambda d: {
        f.name: getattr(d, f.name) for f in dataclasses.fields(d) if type(getattr(d, f.name)) in (str, int)
    }
    assert plain(found) == plain(data)
    assert found.strings == data.strings == {i: f"<{i}>" for i in data.token_ids().tolist()}
    assert [group.label for group in found.examples] == ["top", "uniform"]
    assert found.co_firing is None
    assert found.neighbours is not None
    assert found.neighbours.measure == "cosine"
    assert found.examples[0].windows.before == 3


def test_json_has_no_number_that_json_does_not_know():
    values = json.loads(json.dumps(feature_data().to_json(), allow_nan=False))
    assert values["examples"][0]["loss_effects"][0][1] == [None] * 5
    assert values["co_firing"] is None
    np.testing.assert_allclose(values["density"], feature_data().firings / 1000)


def test_the_density_histogram_counts_every_unit_that_was_on():
    data = dataclasses.replace(feature_data(), firings=np.asarray([0, 1000, 3]))
    found = data.density_histogram()
    assert found.counts.sum() == 2
    assert (found.edges[0], found.edges[-1]) == (1e-3, 1)
    assert found.counts[0, -1] == 1
    nothing = dataclasses.replace(data, firings=np.zeros(3, int)).density_histogram()
    assert nothing.counts.sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"firings": np.asarray([1, 2])}, r"firings has shape \(2,\), for 3 units"),
        ({"firings": np.asarray([1, 2, 1001])}, "from 0 to tokens_seen = 1000"),
        ({"units": np.asarray([1, 2, 2])}, "different indices"),
        ({"examples": feature_data().examples[:1] * 2}, "one label"),
        ({"promoted": TokenEffects(np.zeros((2, 4), int), np.zeros((3, 4)))}, "promoted.tokens has shape"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(feature_data(), **change)


def test_unknown_tensors_and_missing_strings_are_named(tmp_path):
    data = feature_data()
    data.write(tmp_path)
    about, arrays = read_described(tmp_path, "features", formats=(1,), what="x")
    write_described(tmp_path, "features", arrays | {"glow": np.zeros(3)}, about)
    with pytest.raises(UserError, match="'glow'"):
        FeatureData.read(tmp_path)
    write_described(tmp_path, "features", {k: v for k, v in arrays.items() if k != "firings"}, about)
    with pytest.raises(UserError, match="firings"):
        FeatureData.read(tmp_path)
    with pytest.raises(UserError, match="no strings for the tokens"):
        data.with_strings({0: "a"})
