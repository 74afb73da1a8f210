"""`jax-interp explain`: a known answer on the packaged model, where other prompts come from, and what is refused."""

from __future__ import annotations

import pytest

from jax_interp.cli.main import main
from jax_interp.core.json_files import read_json

PROMPT = "class Foo(Bar):\\n    def __init__(self, gamma):\\n        Bar.__init__(self, gamma)\\n        self.gamma ="


def test_a_copied_name_is_explained_by_the_previous_token_head_and_an_induction_head(tmp_path, capsys):
    """test_head_detectors finds these roles by attention patterns: (1, 4) looks one token back, and the five heads
    below are the induction heads. The search does not look at patterns."""
    assert main(["explain", "stdlib-small", PROMPT, "--position", "-1", "--count", "16", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "the model predicts '·g'" in printed
    found = read_json(tmp_path / "explain.json")
    assert "L1 H4, earlier tokens" in found["chosen"]
    strongest = [entry["component"] for entry in found["alone"][:6]]
    assert strongest[0] == "L1 H4, earlier tokens"
    induction = {f"L{layer} H{head}, last token" for layer, head in ((2, 1), (2, 2), (3, 1), (3, 4), (3, 5))}
    assert induction & set(strongest)
    assert len(found["chosen"]) < 8
    page = (tmp_path / "explain.html").read_text()
    assert "<svg" in page
    assert "Each resample of the test" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "give a longer one"),
        ([PROMPT, "--position", "99"], "the prompt has"),
        ([PROMPT, "--count", "3"], "at least 8"),
        ([PROMPT, "--token", " zebra"], "not one token"),
        ([PROMPT, "--position", "-1", "--token", " def"], "the model does not predict"),
    ],
)
def test_what_it_refuses(arguments, message, capsys):
    assert main(["explain", "stdlib-small", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_too_few_other_prompts(tmp_path, capsys):
    """A file whose lines are too short, or fewer than 8."""
    (tmp_path / "others.txt").write_text("self.a =\nself.b =\n")
    arguments = ["explain", "stdlib-small", PROMPT, "--position", "-1", "--others", str(tmp_path / "others.txt")]
    assert main(arguments) == 2
    assert "needs 8 other prompts" in capsys.readouterr().err
