"""What a user gets wrong is one line on stderr and exit code 2; nothing of Python's shows."""

from __future__ import annotations

import json

import pytest

from jax_interp.cli.arguments import one_line
from jax_interp.cli.main import COMMANDS
from jax_interp.core.errors import UserError

WRONG = {
    "no such command": (["dmeo"], "there is no command 'dmeo'; did you mean 'demo'?"),
    "unknown option": (["train-lm", "stdlib_tiny", "--stepss", "3"], "unknown option --stepss; did you mean --steps?"),
    "unknown option near a flag": (["generate", "--bogus"], "unknown option --bogus; did you mean --bos? ("),
    "unknown nested option": (["train-lm", "stdlib_tiny", "--model.n_layer", "3"], "did you mean --model.n-layers?"),
    "wrong type": (["train-lm", "stdlib_tiny", "--steps", "many"], "--steps: 'many' is not an int"),
    "wrong type of float": (["train-lm", "stdlib_tiny", "--optimization.b1", "x"], "b1: 'x' is not a float"),
    "wrong optional": (
        ["train-dictionary", "stdlib_small_topk", "--dictionary.loss.1.k", "x"],
        "'x' is not {None}|INT",
    ),
    "no choice": (["train-lm", "stdlib_tiny", "--model.act", "swish"], "invalid choice 'swish'"),
    "value out of range": (["train-lm", "stdlib_tiny", "--model.n_heads", "7"], "n_heads=7"),
    "missing value": (["train-lm", "stdlib_tiny", "--steps"], "missing value for argument '--steps'"),
    "one argument too many": (["train-lm", "stdlib_tiny", "more"], "more is one argument too many"),
    "no config": (["train-lm"], "train-lm needs a config: stdlib_small, stdlib_tiny"),
    "unknown config": (["train-lm", "stdlib_tinny"], "no config 'stdlib_tinny'. Did you mean 'stdlib_tiny'?"),
    "config of another command": (["train-dictionary", "stdlib_tiny"], "a CONFIG of type LanguageModelConfig"),
    "no such module": (["train-lm", "nowhere/run.py"], "no config at nowhere/run.py"),
    "two configs": (["train-lm", "stdlib_tiny", "--config", "x"], "two configs were given"),
    "nothing after --config": (["train-lm", "--config"], "--config needs a name"),
    "no run directory": (["evaluate", "nowhere"], "there is no file or folder 'nowhere'"),
    "no decomposition": (
        ["decomposition-report", "nowhere"],
        "no directory nowhere: give a run directory of decompose",
    ),
    "required argument": (["evaluate"], "missing argument: SOURCE"),
    "unknown model": (["sites", "no/such/model/dir"], "there is no directory 'no/such/model/dir'"),
    "more than 64 bits": (["generate", "x", "--max-tokens", "9" * 30], "is too large"),
    "unknown user": (["sites", "~nosuchuser/model"], "there is no directory '~nosuchuser/model'"),
    "a name too long": (["train-lm", "x" * 5000], "File name too long"),
    "a slice that stands still": (["sites", "stdlib-small", "blocks.0:4:0.resid_post"], "blocks.0:4:0.resid_post"),
    "seed": (["generate", "x", "--seed", "1" + 25 * "0"], "is not a number of 32 bits"),
    "top-k beyond everything": (
        ["generate", "x", "--temperature", "1", "--top-k", "9" * 12],
        "at most the size of the vocabulary",
    ),
    "no batch": (["sites", "stdlib-small", "--batch", "0"], "must be at least 1"),
    "temperature": (["generate", "x", "--temperature", "-1"], "must be 0 (the likeliest token) or a positive number"),
    "top-k of nothing": (["generate", "x", "--temperature", "1", "--top-k", "0"], "top_k=0 must be at least 1"),
    "top-p": (["generate", "x", "--temperature", "1", "--top-p", "1.5"], "is a probability"),
    "top-k when greedy": (["generate", "x", "--top-k", "3"], "give a temperature above 0 too"),
    "min-p": (["generate", "x", "--temperature", "1", "--min-p", "2"], "min_p=2.0 is a share"),
    "min-p when greedy": (["generate", "x", "--min-p", "0.1"], "give a temperature above 0 too"),
    "repetition penalty": (["generate", "x", "--repetition-penalty", "0"], "must be positive"),
    "stop at nothing": (["generate", "x", "--stop", ""], "give a text to stop at"),
    "no edits": (["generate", "x", "--edits", "none.safetensors"], "there is no file 'none.safetensors'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_and_exit_code_2(case, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    argv, expected = WRONG[case]
    code, out, err = command(*argv)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.startswith("jax-interp: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_bad_site_name_gets_the_nearest(command, model, run_json, tmp_path):
    code, _, err = command("sites", model, "blocks.1.attn.zz")
    assert code == 2
    assert "'blocks.1.attn.zz' names no value of this model. Did you mean blocks.*.attn.z" in err
    assert "`jax-interp sites MODEL` lists every name" in err
    assert "ln_final.normalized" not in err, "the whole list is no hint"
    code, _, err = command(
        "train-dictionary", run_json, "--run-dir", tmp_path / "run", "--dictionary.address", "blocks.0.resid_pots"
    )
    assert code == 2
    assert "Did you mean blocks.*.resid_post" in err
    assert not (tmp_path / "run").exists()


def test_a_site_that_is_no_vector_per_token(command, run_json, tmp_path):
    code, _, err = command(
        "train-dictionary", run_json, "--run-dir", tmp_path, "--dictionary.address", "blocks.*.resid_pre"
    )
    assert code == 2
    assert "a dictionary reads one vector per token" in err


def test_an_occupied_run_directory(command, run_json, run_config, tmp_path):
    (tmp_path / "config.json").write_text(run_json.read_text())
    code, _, err = command("train-dictionary", run_json, "--run-dir", tmp_path, "--dictionary.activation.k", "3")
    assert code == 2
    assert "dictionary.activation.k: 4 -> 3" in err
    assert err.count("\n") == 1


def test_no_text(command, run_json, tmp_path):
    code, _, err = command("train-dictionary", run_json, "--run-dir", tmp_path / "r", "--text", tmp_path / "none.txt")
    assert code == 2
    assert "no text at" in err
    (tmp_path / "short.txt").write_text("def f(): pass")
    code, _, err = command("train-dictionary", run_json, "--run-dir", tmp_path / "r", "--text", tmp_path / "short.txt")
    assert code == 2
    assert "has 3 tokens: 0 rows of 32, less than one batch of 2" in err


def test_damaged_config_files(command, tmp_path, run_json):
    (tmp_path / "config.json").write_text("{")
    assert command("train-dictionary", tmp_path)[0] == 2
    changed = json.loads(run_json.read_text()) | {"modle": "x"}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    code, _, err = command("train-dictionary", "--config", tmp_path / "config.json")
    assert code == 2
    assert "did you mean 'model'?" in err
    (tmp_path / "broken.py").write_text("import nothing_like_this\n")
    code, _, err = command("train-dictionary", tmp_path / "broken.py")
    assert code == 2
    assert "ModuleNotFoundError" in err
    (tmp_path / "empty.py").write_text("")
    code, _, err = command("train-dictionary", tmp_path / "empty.py")
    assert code == 2
    assert "has no CONFIG" in err


def test_debug_shows_the_traceback(command):
    with pytest.raises(UserError):
        command("--debug", "train-lm", "stdlib_tinny")


def test_a_defect_keeps_its_traceback(command, monkeypatch):
    monkeypatch.setitem(COMMANDS, "broken", ("no_such_module", "x"))
    with pytest.raises(ModuleNotFoundError):
        command("broken")


def test_ctrl_c_says_how_to_go_on(command, monkeypatch):
    from jax_interp.cli import sites

    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(sites, "run", interrupted)
    code, _, err = command("sites")
    assert code == 130
    assert "the same command resumes" in err


def test_a_failed_run_is_exit_code_1(command, monkeypatch):
    from jax_interp.cli import sites
    from jax_interp.training import NonFinite

    def failed(argv):
        raise NonFinite(7, "loss", "nan", "Lower the learning rate")

    monkeypatch.setattr(sites, "run", failed)
    code, _, err = command("sites")
    assert code == 1
    assert "step 7: loss is nan" in err


def test_a_box_becomes_a_line():
    box = (
        "╭─ Unrecognized options ──╮\n│ Unrecognized options: --x, 3 │\n│ ──────── │\n"
        "│ Perhaps you meant:      │\n│     --xy INT            │\n│         (default: 1)    │\n╰──╯\n"
    )
    assert one_line(box) == "unknown option --x; did you mean --xy?"
    bare = " Value error\n ------\n  Error parsing --x: Could not find valid parse for arguments: ['y'].\n  -----\n"
    assert one_line(f"{bare}  Argument helptext:\n      --x FLOAT\n") == "--x: 'y' is not FLOAT"
    assert one_line("") == "the arguments could not be read"
