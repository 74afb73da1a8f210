"""`jax-interp plan`: its page, its JSON, its exit codes and its refusals."""

from __future__ import annotations

import ast
import json
import re

import pytest

from jax_interp.cli.main import main
from jax_interp.models.public_shapes import find_public_shape
from jax_interp.recipes.configs import directories

LARGE = (
    "--model", "llama-3.1-8b", "--dtype", "bfloat16", "--dictionary.address", "blocks.16.resid_post",
    "--dictionary.n-features", "131072", "--batch", "16",
)  # fmt: skip


def test_a_plan_has_the_bytes_of_its_parts(capsys):
    code = main(["plan", "stdlib_small_topk", *LARGE, "--mesh", "data=8,tensor=4", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert code == 0
    assert plan["fits"]
    assert plan["devices"] == 32
    # bfloat16, split over tensor, except the norms
    shape = find_public_shape("llama-3.1-8b")
    assert shape is not None
    assert plan["memory_bytes"]["model"] == pytest.approx(2 * shape.parameters / 4, rel=1e-3)
    weights = 131072 * (2 * 4096 + 1)  # the encoder, the decoder and the encoder's bias, in float32 over tensor
    assert plan["memory_bytes"]["trained"] == pytest.approx(4 * weights / 4, rel=1e-3)
    assert plan["memory_bytes"]["optimizer"] == pytest.approx(8 * weights / 4, rel=1e-3)
    assert plan["memory_bytes"]["total"] == sum(v for k, v in plan["memory_bytes"].items() if k != "total")


@pytest.mark.slow
def test_what_does_not_fit_exits_with_1_and_names_what_would_mend_it(capsys):
    """A batch that needs some 18 GB of activations: halves of it fit, and so does a second device."""
    assert main(["plan", "stdlib_tiny", "--batch", "4096", "--device", "v5e", "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert not plan["fits"]
    assert plan["memory_bytes"]["total"] > plan["available_bytes"]
    assert {"--mesh data=2", "--batch 2048"} <= set(plan["remedies"])
    assert all(other["fits"] for other in plan["remedies"].values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stdlib_small_topk", "--device", "h1000"], "there is no device 'h1000'"),
        (["stdlib_small_topk", "--mesh", "dat=2"], "there is no axis 'dat'"),
        (["stdlib_small_topk", "--mesh", "data=-1"], "a plan needs the size of every axis"),
        (["stdlib_small_topk", "--mesh", "data=3"], "cannot be split equally"),
        (["stdlib_small_topk", "--mesh", "tensor=3"], "tensor = 3 does not divide"),
        (["stdlib_small_topk", "--model", "llama-9"], "Sizes that need no files"),
        (["stdlib_small_topk", "--efficiency", "2"], "a share of the peak"),
        (["stdlib_small_probes"], "no training step to plan"),
        (["stdlib_small", "--of", "features"], "is for configs of dictionaries"),
        ([], "plan needs a config"),
    ],
)
def test_wrong_requests_are_one_line(arguments, says, capsys):
    assert main(["plan", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


PLANNED = ("gpt2_small_topk", "gpt2_small_clt", "llama_1b_spd", "llama_8b_features")


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANNED)
def test_the_docstring_of_a_full_size_config_states_its_plan(name, capsys):
    text = ast.get_docstring(ast.parse((directories()[0] / f"{name}.py").read_text()))
    assert text is not None
    assert "Planned, not run." in text
    command = re.search(r"jax-interp (plan .*)", text)
    stated = re.search(r"Memory of a device: (.*?)\. A step: (.*?) to (.*?)\. The run: (.*?) to (.*?) of devices", text)
    assert command is not None
    assert stated is not None
    assert main(command[1].split()) == 0
    page = capsys.readouterr().out
    memory, *times = stated.groups()
    assert re.search(rf"total +{re.escape(memory)} ", page)
    for row, (low, high) in zip(("step", "device-hours"), (times[:2], times[2:])):
        assert re.search(rf"{row} +{re.escape(low)} to {re.escape(high)} ", page)
