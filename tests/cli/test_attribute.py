"""`jax-interp attribute`: what it writes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp import load
from jax_interp.circuits.attribution import attribute
from jax_interp.circuits.nodes import make_nodes
from jax_interp.circuits.tasks import find_task
from jax_interp.cli.main import main
from jax_interp.core.json_files import read_json
from jax_interp.core.tensor_files import read_tensors


def test_the_page_begins_with_the_check(tmp_path, capsys):
    """The residual stream in the docstring task, where gradients fail: the warning is first on the page and in the
    terminal. The arrays are those of `attribute`."""
    arguments = ["--task", "docstring", "--units", "blocks.*.resid_pre", "--per", "pos", "--prompts", "8"]
    assert main(["attribute", *arguments, "--check", "12", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("DO NOT TRUST") < printed.index("largest estimated")
    page = (tmp_path / "attribution.html").read_text()
    assert page.index('role="alert"') < page.index("<dl>")
    assert "<svg" in (tmp_path / "blocks.all.resid_pre.svg").read_text()
    model, tokenizer = load("stdlib-small")
    contrast = find_task("docstring").sample(tokenizer, 8, 0).contrast
    found = attribute(model, contrast, make_nodes(model, contrast, "blocks.*.resid_pre", per="pos"))
    arrays = read_tensors(tmp_path / "attribution.safetensors").arrays
    np.testing.assert_array_equal(arrays["effects"], found.effects)
    summary = read_json(tmp_path / "attribution.json")
    assert summary["check"]["pearson"] == pytest.approx(
        np.corrcoef(arrays["check.estimated"], arrays["check.measured"])[0, 1]
    )
    assert summary["units"][0]["unit"] == found.largest(1)[0][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "induktion"], "there is no task"),
        (["--steps", "3"], "--steps is for integrated gradients"),
        (["--prompts", "0"], "at least 1"),
        (["--units", "blocks.*.attn.zz"], "names no value"),
        (["--units", "blocks.*.mlp_out", "--per", "head"], "no value has this axis"),
    ],
)
def test_what_it_refuses(arguments, message, capsys):
    assert main(["attribute", *arguments]) == 2
    assert message in capsys.readouterr().err
