"""trace-graph on a small model with transcoders that the trainers made."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jax_interp.circuits.attribution_graphs import prune, scores
from jax_interp.circuits.attribution_graphs.saving import load_attribution_graph
from jax_interp.core import config_json as configs
from jax_interp.core.json_files import read_json
from jax_interp.dictionaries import Adam, variants

READS = ("blocks.0.ln2.normalized", "blocks.1.ln2.normalized")
WRITES = ("blocks.0.mlp_out", "blocks.1.mlp_out")
KEEP_ALL = ("--node-threshold", "1", "--edge-threshold", "1")
PROMPT = "class Queue:\n    def push"


@pytest.fixture(scope="module")
def transcoder(run_config, tmp_path_factory):
    from jax_interp.cli.main import main

    small = {"k": 4, "n_features": 32, "steps": 12, "optimizer": Adam(warmup=2), "buffer": 256, "dead_after": 400}
    config = dataclasses.replace(run_config, dictionary=variants.batch_topk_cross_layer(READS, WRITES, **small))
    folder = tmp_path_factory.mktemp("trace")
    (folder / "clt.json").write_text(configs.dumps(config))
    assert main(["train-dictionary", str(folder / "clt.json"), "--run-dir", str(folder / "clt"), "--quiet"]) == 0
    return folder / "clt"


def test_what_the_directory_has(transcoder, command, tmp_path):
    code, out, err = command(
        "trace-graph",
        PROMPT,
        "--dictionaries",
        transcoder,
        "--out",
        tmp_path / "graph",
        "--quiet",
        "--batch",
        "16",
        *KEEP_ALL,
    )
    assert (code, err) == (0, "")
    graph = load_attribution_graph(tmp_path / "graph")
    assert "".join(graph.texts or ()).endswith("push")
    summary = read_json(tmp_path / "graph" / "summary.json")
    assert summary["replacement_score"] == scores(graph).replacement
    assert summary["kept"]["edges"] == prune(graph, 1.0, 1.0).edges.sum()
    assert summary["kept"]["features"] > 10
    assert f"replacement score {scores(graph).replacement:.3f}" in out
    viewer = json.loads((tmp_path / "graph" / "viewer" / "graph.json").read_text())
    assert viewer["metadata"]["prompt"] == PROMPT
    names = {node["node_id"] for node in viewer["nodes"]}
    assert all({link["source"], link["target"]} <= names for link in viewer["links"])
    page = (tmp_path / "graph" / "graph.html").read_text()
    assert "replacement score" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_directory_with_files_is_not_touched(transcoder, command, tmp_path):
    (tmp_path / "mine").write_text("")
    code, _, err = command("trace-graph", PROMPT, "--dictionaries", transcoder, "--out", tmp_path)
    assert code == 2
    assert "not an empty directory" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dictionaries", "nowhere"), "no file or folder"),
        (("--dictionaries", "{clt}", "{clt}"), "give it alone"),
        (("--dictionaries", "{clt}", "{clt}", "--ids", "a"), "for one release"),
        (("--dictionaries", "{clt}", "--node-threshold", "2"), "from 0 to 1"),
        (("--dictionaries", "{clt}", "--max-features", "0"), "at least 1"),
    ],
)
def test_wrong_input_is_one_error(transcoder, command, tmp_path, arguments, said):
    filled = [one.format(clt=transcoder) for one in arguments]
    code, _, err = command("trace-graph", PROMPT, *filled, "--out", tmp_path / "graph", "--quiet")
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "graph").exists()
