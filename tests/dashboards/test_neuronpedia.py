"""Neuronpedia's JSON: what is written is read, what its layouts say is read, and nothing in a file is trusted."""

from __future__ import annotations

import dataclasses
import gzip
import json

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dashboards import PageOptions, collect_units
from jax_interp.dashboards.neuronpedia import Source, feature_json, write_neuronpedia
from jax_interp.dashboards.neuronpedia_files import read_neuronpedia
from tests.dashboards.test_feature_data import feature_data

SOURCE = Source("toy", "6-mine", "mine", release="mine-2026", hook="blocks.6.hook_resid_pre")
HOSTILE = ["</script><script>alert(1)</script>", "\u202e\u0000\x1b[31m", '"},{"', "\ud7ff \n\t", "", "=1+1", "../../x"]


def collected():
    """Data of a real pass, so that counts and densities agree; its tokens have hostile texts."""
    rng = np.random.default_rng(0)
    table = (rng.integers(-2, 9, (len(HOSTILE), 5)) * (rng.random((len(HOSTILE), 5)) < 0.6)).astype(np.float32)
    tokens = rng.integers(0, len(HOSTILE), (6, 12))
    keep = rng.random(tokens.shape) < 0.9
    options = PageOptions(top=4, sample=12, uniform=4, quantiles=2, per_quantile=2, before=2, after=3, neighbours=0)
    data = collect_units(lambda t, x: t[x.reshape(-1)], table, [(tokens, keep)], options)
    return data.with_strings(dict(enumerate(HOSTILE)))


def test_what_is_written_is_read(tmp_path):
    data = collected()
    write_neuronpedia(data, tmp_path / "export", SOURCE, explanations={3: HOSTILE[0]}, batch=2)
    found = read_neuronpedia(tmp_path / "export")
    assert found.explanations == {3: (HOSTILE[0],)}
    read = found.data
    np.testing.assert_array_equal(read.units, data.units)
    np.testing.assert_array_equal(read.firings, data.firings)
    assert read.tokens_seen == data.tokens_seen
    np.testing.assert_allclose(read.max_activation, data.max_activation)
    np.testing.assert_allclose(read.activation_histogram.edges, data.activation_histogram.edges)
    np.testing.assert_array_equal(read.activation_histogram.counts, data.activation_histogram.counts)
    (group,) = read.examples
    words = lambda d, w, u, k: [d.strings[t] for t in w.tokens[u, k].tolist() if t >= 0]
    for unit in range(5):
        places, expected = set(), []
        for one in data.examples:
            w = one.windows
            for k in np.flatnonzero(w.place[unit, :, 0] >= 0):
                if (place := tuple(w.place[unit, k])) not in places:
                    places.add(place)
                    expected.append(
                        (float(w.peak[unit, k]), words(data, w, unit, k), w.tokens[unit, k, : w.before] >= 0)
                    )
        w = group.windows
        there = np.flatnonzero(w.tokens[unit, :, w.before] >= 0)
        got = [(float(w.peak[unit, k]), words(read, w, unit, k)) for k in there]
        assert sorted(got) == sorted((peak, text) for peak, text, _ in expected)


def test_the_layout_of_an_export(tmp_path):
    write_neuronpedia(collected(), tmp_path, SOURCE, batch=2, explanations={0: "zero"})
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    batches = {f"{kind}/batch-{i}.jsonl.gz" for kind in ("features", "activations") for i in range(3)}
    about = {f"{name}.jsonl" for name in ("release", "model", "sourceset", "source")}
    assert names == batches | about | {"explanations/batch-0.jsonl.gz"}
    first_line = lambda kind: gzip.decompress((tmp_path / kind / "batch-0.jsonl.gz").read_bytes()).split(b"\n")[0]
    feature = json.loads(first_line("features"))
    assert feature.items() >= {"modelId": "toy", "layer": "6-mine", "index": "0", "sourceSetName": "mine"}.items()
    # what was not measured is absent
    absent = {
        "vector",
        "pos_str",
        "neuron_alignment_indices",
        "correlated_features_indices",
        "n_prompts_total",
        "dataset",
    }
    assert not absent & feature.keys()
    activation = json.loads(first_line("activations"))
    assert activation["values"][activation["maxValueTokenIndex"]] == activation["maxValue"]
    assert not {"dfaValues", "binMin"} & activation.keys()


def test_one_feature_has_what_was_measured():
    data = feature_data()
    data = dataclasses.replace(data, examples=data.examples[:1])
    one = feature_json(data, 1, SOURCE, vector=np.arange(3.0))
    assert one["pos_str"] == [f"<{t}>" for t in data.promoted.tokens[1]]
    assert one["neg_values"] == pytest.approx(data.suppressed.effects[1].tolist())
    assert one["topkCosSimIndices"] == data.neighbours.units[1].tolist()
    assert (one["vector"], one["index"], one["hookName"]) == ([0, 1, 2], "2", SOURCE.hook)
    assert one["frac_nonzero"] == data.firings[1] / 1000


def as_the_api_returns_it():
    """Two features as dictionaries.md E12 lists their fields, with others that a page does not show."""
    activation = lambda tokens, values, **more: {
        "tokens": tokens, "values": values, "maxValue": max(values), "maxValueTokenIndex": int(np.argmax(values)),
        "minValue": min(values), "dataIndex": "0", "dfaValues": [], **more,
    }  # fmt: skip
    feature = lambda index, counts, activations, **more: {
        "modelId": "gpt2-small", "layer": "6-res-jb", "index": index, "sourceSetName": "res-jb", "maxActApprox": 7.5,
        "hookName": "blocks.6.hook_resid_pre", "vector": [0.5], "pos_str": [" a", "b"], "pos_values": [2.0, 1.0],
        "neg_str": ["c"], "neg_values": [-3.0], "frac_nonzero": sum(counts) / 1280,
        "freq_hist_data_bar_values": [0.5, 1.5, 2.5], "freq_hist_data_bar_heights": counts, "n_prompts_total": 10,
        "n_tokens_in_prompt": 128, "topkCosSimIndices": [9, 4], "topkCosSimValues": [0.9, 0.4], "creatorId": "x",
        "explanations": [{"description": "says a", "typeName": "oai"}], "activations": activations, **more,
    }  # fmt: skip
    first = [
        activation([" a", "b", " a"], [0.0, 2.0, 7.5]),
        activation([" x", " a"], [1.0, 0.0], binMin=0.0, binMax=2.5, binContains=0.5, qualifyingTokenIndex=0),
        activation([" y", " a", "z"], [0.0, 3.0, 5.0], binMin=2.5, binMax=5.0, binContains=0.3, qualifyingTokenIndex=1),
    ]
    return [feature("12", [5, 2, 1], first), feature("3", [100, 28, 0], [], pos_str=[], pos_values=[])]


def check_read(found):
    data = found.data
    assert (data.units.tolist(), data.model, data.tokens_seen) == ([12, 3], "gpt2-small", 1280)
    assert data.firings.tolist() == [8, 128]
    np.testing.assert_allclose(data.activation_histogram.edges, [0, 1, 2, 3])
    assert [group.label for group in data.examples] == ["top", "interval 1", "interval 2"]
    top, high, _ = (group.windows for group in data.examples)
    assert (top.peak[0, 0], high.peak[0, 0], high.before) == (7.5, 3.0, 1)
    assert [data.strings[t] for t in high.tokens[0, 0].tolist()] == [" y", " a", "z"]
    assert (high.tokens[1] == -1).all()
    assert [data.strings[t] for t in data.promoted.tokens[0]] == [" a", "b"]
    assert data.promoted.tokens[1].tolist() == [-1, -1]
    assert data.neighbours.units.tolist() == [[9, 4], [9, 4]]


def test_what_the_api_returns_is_read(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps(as_the_api_returns_it()))
    found = read_neuronpedia(tmp_path / "f.json")
    check_read(found)
    assert found.explanations == {12: ("says a",), 3: ("says a",)}
    (tmp_path / "one.json").write_text(json.dumps(as_the_api_returns_it()[0]))
    assert read_neuronpedia(tmp_path / "one.json").data.units.tolist() == [12]


def test_a_batch_of_saedashboard_is_read(tmp_path):
    new = {"index": "feature_index", "binMin": "bin_min", "binMax": "bin_max", "binContains": "bin_contains",
           "qualifyingTokenIndex": "qualifying_token_index"}  # fmt: skip
    rename = lambda v: {
        new.get(k, k): x for k, x in v.items() if k not in ("modelId", "layer", "maxActApprox", "explanations")
    }
    features = []
    for one in as_the_api_returns_it():
        rows = [rename({k: v for k, v in a.items() if not k.startswith("m")}) for a in one["activations"]]
        features.append(rename(one) | {"feature_index": int(one["index"]), "activations": rows})
    batch = {"model_id": "gpt2-small", "layer": 6, "sae_set": "res-jb", "sae_id_suffix": None, "features": features}
    (tmp_path / "batch-0.json").write_text(json.dumps(batch))
    found = read_neuronpedia(tmp_path / "batch-0.json")
    check_read(found)
    assert found.data.max_activation.tolist() == [7.5, 0]
    assert found.data.title == "6-res-jb"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": "-1"}, "index of a feature"),
        ({"index": 1.0}, "index of a feature"),
        ({"index": "3"}, "feature 3 twice"),
        ({"layer": "7-x"}, "2 sources"),
        ({"modelId": None}, "modelId is None"),
        ({"frac_nonzero": 1.5}, "from 0 to 1"),
        ({"frac_nonzero": 0.9}, "do not agree"),
        ({"pos_values": [1.0]}, "different lengths"),
        ({"pos_str": "ab"}, "not a list of texts"),
        ({"freq_hist_data_bar_values": [0.5, 1.5, 9.5]}, "cannot be told"),
        ({"freq_hist_data_bar_heights": [6, 2]}, "different numbers of bins"),
        ({"activations": [{"tokens": ["a"], "values": []}]}, "1 tokens and 0 values"),
        ({"activations": [{"tokens": ["a"], "values": [True]}]}, "not a list of numbers"),
        ({"activations": [{"tokens": ["a"], "values": [1.0], "qualifyingTokenIndex": 1}]}, "its peak at 1"),
        ({"activations": {}}, "not a list of objects"),
        ({"topkCosSimIndices": [1.5, 2]}, "not whole numbers"),
        ({"maxActApprox": 1e300}, "not a number of float32"),
        ({"activations": ["x"]}, "not a list of objects"),
        ({"explanations": [{"description": 3}]}, "description is 3"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, change, message):
    features = as_the_api_returns_it()
    features[0] |= change
    (tmp_path / "f.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=message):
        read_neuronpedia(tmp_path / "f.json")


def test_damaged_files_and_mixed_folders_are_refused(tmp_path):
    data = collected()
    path = write_neuronpedia(data, tmp_path / "e", SOURCE) / "features/batch-0.jsonl.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"{}", whole[:30] + b"\0\0" + whole[32:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            read_neuronpedia(tmp_path / "e")
    path.write_bytes(gzip.compress(b'{"modelId": NaN}\n'))
    with pytest.raises(UserError):
        read_neuronpedia(tmp_path / "e")
    path.write_bytes(gzip.compress(b"[]\n"))
    with pytest.raises(UserError, match="not a JSON object"):
        read_neuronpedia(tmp_path / "e")
    with pytest.raises(UserError, match="not an empty folder"):
        write_neuronpedia(data, tmp_path / "e", SOURCE)
    with pytest.raises(UserError, match="no features"):
        read_neuronpedia(tmp_path)
    with pytest.raises(UserError, match="no text of token"):
        write_neuronpedia(dataclasses.replace(data, strings={}), tmp_path / "n", SOURCE)
    with pytest.raises(UserError, match="explanations of"):
        write_neuronpedia(data, tmp_path / "n", SOURCE, explanations={99: "x"})
    assert not (tmp_path / "n").exists()
    with pytest.raises(UserError, match="needs layer and source_set"):
        Source("m", "", "")
