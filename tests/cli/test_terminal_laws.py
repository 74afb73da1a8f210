"""Generated laws of the command line: text from outside is shown, not obeyed; a wrong argument is one line."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generated import drawn

from jax_interp.cli import generate as generate_command
from jax_interp.core import config_json
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.dictionaries.activations import TopK
from jax_interp.dictionaries.forms import init_sae
from jax_interp.dictionaries.saving import save_dictionary
from jax_interp.recipes.configs import find_config
from jax_interp.recipes.decomposition.config import DecompositionRunConfig
from jax_interp.recipes.train_lm import LanguageModelConfig
from jax_interp.training.progress import Bar, Lines
from jax_interp.views.tables import print_table

DIRECTIONS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
PIECES = [
    "\x1b]52;c;aGk=\x07", "\x1b[2J", "\x9b31m", "\u202e", "\u2066", "\u200f", "\x08", "\r", "\x7f", "\x00", "\n", "[/]",
    "[bold]", "[link=file:///etc]", ":smile:", "\\", "a", "é", "שלום", "名", " ",
]  # fmt: skip


def obeyed(text: str) -> list[str]:
    """The characters that a terminal would obey; line ends and tabs may be printed."""
    harmful = lambda c: unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in DIRECTIONS
    return sorted({c for c in text if c not in "\n\t" and (harmful(c) or c in "\u200e\u200f\u061c")})


def evil(rng: np.random.Generator, without: str = "") -> str:
    """Text with characters that a terminal or rich would obey."""
    text = "".join(rng.choice(PIECES, int(rng.integers(1, 7))))
    return "".join(c for c in text if c not in without) or "[/]"


@dataclasses.dataclass
class Shown:
    """Where text from outside is printed. Each method prints `text`, and returns what was printed."""

    command: Any
    capsys: Any
    monkeypatch: Any
    model: Path
    place: Path

    def name_of_a_command(self, text: str) -> str:
        return self.printed(text)

    def option(self, text: str) -> str:
        return self.printed("sites", f"--{text}")

    def value_of_an_option(self, text: str) -> str:
        return self.printed("generate", "x", "--max-tokens", text)

    def address(self, text: str) -> str:
        return self.printed("sites", self.model, text)

    def path(self, text: str) -> str:
        return self.printed("evaluate", self.place / text.replace("/", "") / "run")

    def folder_of_a_model(self, text: str) -> str:
        folder = self.place / text.replace("/", "").replace("\x00", "")[:80] / "m"
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.model.iterdir():
            if not (folder / file.name).exists():
                (folder / file.name).symlink_to(file)
        out = self.printed("sites", folder, "embed")
        assert "embed" in out, out
        return out

    def key_of_a_config(self, text: str) -> str:
        return self.printed("decompose", "--config", self.config({text: 1}))

    def value_of_a_config(self, text: str) -> str:
        return self.printed("decompose", "--config", self.config({"target": text, "text": text}))

    def default_in_the_help(self, text: str) -> str:
        out = self.printed("decompose", "--config", self.config({"target": text}), "--help")
        assert "--target" in out
        return out

    def generated_text(self, text: str) -> str:
        self.monkeypatch.setattr(generate_command, "continue_text", lambda config, prompt: iter([text, text]))
        return self.printed("generate", "x")

    def table(self, text: str) -> str:
        self.capsys.readouterr()
        print_table([text, (text, "right")], [[text, "cell"]], title=text)
        return self.capsys.readouterr().out

    def lines(self, text: str) -> str:
        self.capsys.readouterr()
        view = Lines(text, 0, 2, (text,))
        view.values(1, {text: text})
        view.step(1)
        view.close()
        return self.capsys.readouterr().err

    def bar(self, text: str) -> str:
        file = io.StringIO()
        with self.monkeypatch.context() as context:
            context.setattr(sys, "stderr", file)
            view = Bar(text, 0, 2, (text,))
            view.values(1, {text: text})
            view.close()
        return file.getvalue()

    def warning(self, text: str) -> str:
        as_shown = lambda argv: sys.stderr.write(warnings.formatwarning(text, UserWarning, text, 1)) and 0
        self.monkeypatch.setattr("jax_interp.cli.sites.run", as_shown)  # pytest takes the warnings themselves
        return self.printed("sites")

    def printed(self, *argv: object) -> str:
        _, out, err = self.command(*argv)
        assert "Traceback" not in err
        return out + err

    def config(self, changes: dict[str, Any]) -> Path:
        body = json.loads(config_json.dumps(DecompositionRunConfig(DecompositionConfig(), target="tms:5-2")))
        path = self.place / "config.json"
        path.write_text(json.dumps(body | changes))
        return path


@pytest.mark.hardening
def test_text_from_outside_is_shown_and_not_obeyed(command, capsys, monkeypatch, model, tmp_path, tally):
    places = [name for name in vars(Shown) if not name.startswith("_") and name not in ("printed", "config")]
    places = [name for name in places if callable(getattr(Shown, name))]
    tried, broken = drawn(3, 15) * len(places), []
    for case in range(tried):
        rng, name = np.random.default_rng([20, case]), places[case % len(places)]
        text = evil(rng, without="\x00" if name in ("path", "address") else "")
        try:
            out = getattr(Shown(command, capsys, monkeypatch, model, tmp_path), name)(text)
            problem = f"printed {obeyed(out)}" if obeyed(out) else None
        except Exception as error:  # whatever it is, a command must not end with it
            problem = f"{type(error).__name__}: {error}"
        monkeypatch.undo()
        if problem:
            broken.append(f"case {case}, {name}, {text!r}: {problem}")
    tally("text from outside on a terminal", tried=tried, broken=len(broken))
    assert not broken, "\n".join(broken)


def test_raw_text_for_files(command, monkeypatch):
    monkeypatch.setattr(generate_command, "continue_text", lambda config, prompt: iter(["\x1b[1m", "b"]))
    assert command("generate", "a", "--raw")[1] == "a\x1b[1mb\n"
    assert command("generate", "a")[1] == "a\\x1b[1mb\n"


def damaged_file(rng: np.random.Generator, place: Path, body: Any, is_text: bool = False) -> Path:
    """A path that is no good config, model, edits, dictionary or run; with `is_text`, no good text either."""
    what = rng.choice(
        [
            "missing",
            "folder",
            "empty",
            "bytes",
            "text",
            "json",
            "deep",
            "wrong type",
            "unknown key",
            "long",
            "file in path",
        ]
    )
    what = "bytes" if is_text and what == "deep" else what  # a text may have many brackets
    suffix = rng.choice(["", ".json", ".py", ".safetensors"])
    path = place / f"{what.replace(' ', '-')}-{rng.integers(10**6)}{suffix}"
    content: bytes | None = None
    match what:
        case "folder":
            path.mkdir()
            if rng.random() < 0.5:
                (path / rng.choice(["config.json", "dictionary.json", "model.safetensors"])).write_bytes(b"\x00{")
        case "empty":
            content = b""
        case "bytes":
            content = rng.bytes(int(rng.integers(1, 200)))
        case "text":
            content = "import nothing_of_this_name \x1b[1m [/] \u202e".encode()
        case "json":
            content = json.dumps(rng.choice(np.array([None, 3, "x", True], object))).encode()
        case "deep":
            content = b"[" * 100_000 + b"]" * 100_000
        case "wrong type" | "unknown key":
            content = json.dumps(_changed(rng, body, what)).encode()
        case "long":
            path = place / ("x" * 300 + suffix)
        case "file in path":
            (place / "file").write_text("x")
            path = place / "file" / f"x{suffix}"
    if content is not None:
        path.write_bytes(content)
    return path


def _changed(rng: np.random.Generator, body: dict[str, Any], what: str) -> dict[str, Any]:
    """The config with one value of a wrong type, or one unknown key."""
    changed = json.loads(json.dumps(body))
    node, names = changed, list(changed)
    while True:
        name = str(rng.choice([n for n in names if n != "type"]))
        if not isinstance(node[name], dict) or "type" not in node[name] or rng.random() < 0.3:
            break
        node, names = node[name], list(node[name])
        if set(names) == {"type"}:
            break
    if what == "unknown key" or name not in node:
        node["no such [/] key\x1b"] = 1
    else:
        node[name] = {"no such": ["type"]}
    return changed


@pytest.mark.hardening
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    command, model, run_json, demo_json, tmp_path, monkeypatch, tally
):
    """Every argument of every command that names a file, with a damaged file; and options with wrong values."""
    monkeypatch.chdir(tmp_path)
    dump = lambda config: json.loads(config_json.dumps(config))
    bodies = {
        "train-lm": dump(find_config(LanguageModelConfig, "stdlib_tiny").config),
        "train-dictionary": json.loads(run_json.read_text()),
        "decompose": dump(DecompositionRunConfig(DecompositionConfig(), target="tms:5-2")),
        "demo": json.loads(demo_json.read_text()),
    }
    dictionary = tmp_path / "good"
    save_dictionary(
        dictionary, init_sae(jax.random.key(0), 16, 32, TopK(4), jnp.zeros(16)), address="embed", model=str(model)
    )
    arguments: list[tuple[str, ...]] = [
        *((name, argument) for name in bodies for argument in ("FILE", "--config FILE", "--config=FILE")),
        *((name, f"{name_of(name)} --run-dir OTHER-FILE") for name in ("train-lm", "train-dictionary", "decompose")),
        ("sites", "FILE"),
        ("generate", "x --model FILE"),
        ("generate", f"x --model {model} --edits FILE"),
        ("evaluate", "FILE"),
        ("evaluate", f"{dictionary} --text FILE"),
        ("evaluate", f"{dictionary} --model FILE"),
        ("decomposition-report", "FILE"),
        ("generate", "x --WRONG"),
        ("sites", f"{model} --WRONG"),
        ("decompose", "tms_5_2_spd --WRONG"),
    ]
    tried, broken = drawn(2, 10) * len(arguments), []
    for case in range(tried):
        rng, (name, template) = np.random.default_rng([21, case]), arguments[case % len(arguments)]
        path = damaged_file(rng, tmp_path, bodies.get(name, bodies["demo"]), "--text" in template)
        if "OTHER-FILE" in template:  # a run directory that cannot be made
            (tmp_path / "file").write_text("x")
            path = tmp_path / rng.choice(["file", "file/x", "x" * 300])
        wrong = rng.choice(["max-tokens=x", "pos=1.5", "batch", "seed=[1]", "decomposition.steps=None", "nothing=1"])
        argv = [w.replace("OTHER-FILE", str(path)).replace("FILE", str(path)) for w in template.split()]
        argv = [w.replace("WRONG", str(wrong)) for w in argv]
        try:
            code, out, err = command(name, *argv)
        except BaseException as error:
            broken.append(f"case {case}: {name} {argv}: {type(error).__name__}: {str(error)[:200]}")
            continue
        good = (
            code == 2 and err.startswith("jax-interp: error: ") and err.count("\n") == 1 and not obeyed(err) and not out
        )
        if not good:
            broken.append(f"case {case}: {name} {argv}: exit code {code}, {out[-200:]!r}, {err[-300:]!r}")
    tally("wrong arguments of commands", tried=tried, broken=len(broken))
    assert not broken, "\n".join(broken)


def name_of(command: str) -> str:
    return {"train-lm": "stdlib_tiny", "train-dictionary": "stdlib_small_topk", "decompose": "tms_5_2_spd"}[command]
