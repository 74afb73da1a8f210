"""A model, a text and a demo so small that a command on them is mostly compilation."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jax_interp.cli.main import main
from jax_interp.core import config_json as configs
from jax_interp.data.tokenizer import train_bpe
from jax_interp.dictionaries import Adam, variants
from jax_interp.models import Config, init, save
from jax_interp.recipes.demo.config import DemoConfig
from jax_interp.recipes.demo.patching import PromptPair
from jax_interp.recipes.dictionary import DictionaryRunConfig
from jax_interp.recipes.feature_page import FeaturePageConfig

DOCUMENT = """class {name}:
    def __init__(self, item, value):
        self.item = item
        self.value = value

    def push(self, item):
        self.items.append(item)
        return [self.value, ({i}, item)]


"""


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A directory with twelve documents."""
    directory = tmp_path_factory.mktemp("text")
    for i in range(12):
        body = "".join(DOCUMENT.format(name=name, i=i) for name in ("Queue", "Stack", "Heap"))
        (directory / f"{i:02d}.py").write_text(body)
    return directory


@pytest.fixture(scope="session")
def model(text: Path, tmp_path_factory) -> Path:
    """A random decoder of two blocks and its tokenizer, saved as `load` reads them."""
    tokenizer = train_bpe((path.read_text() for path in sorted(text.iterdir())), 300)
    config = Config(n_layers=2, d_model=16, n_heads=2, d_mlp=32, vocab_size=tokenizer.vocab_size, n_ctx=64)
    return save(init(config, jax.random.key(0)), tmp_path_factory.mktemp("models") / "tiny", tokenizer=tokenizer)


@pytest.fixture(scope="session")
def run_config(text: Path, model: Path) -> DictionaryRunConfig:
    return DictionaryRunConfig(
        model=str(model),
        text=str(text),
        dictionary=variants.topk(
            "blocks.1.resid_pre",
            k=4,
            n_features=32,
            steps=12,
            optimizer=Adam(warmup=2),
            buffer=256,
            dead_after=400,
        ),
        batch=2,
        context=32,
        evaluate_sequences=4,
        log_every=2,
        checkpoint_every=4,
        page=FeaturePageConfig(features=0),  # `test_dashboard.py` has pages
    )


@pytest.fixture(scope="session")
def run_json(run_config: DictionaryRunConfig, tmp_path_factory) -> Path:
    """The config of a dictionary run as a JSON file."""
    path = tmp_path_factory.mktemp("configs") / "tiny.json"
    path.write_text(configs.dumps(run_config))
    return path


@pytest.fixture(scope="session")
def demo_json(run_config: DictionaryRunConfig, tmp_path_factory) -> Path:
    """The config of a demo as a JSON file."""
    demo = DemoConfig(
        dictionary=run_config,
        opening="class Queue:",
        token="self",
        prompt="def push(self",
        new_tokens=4,
        search_sequences=8,
        shown_features=2,
        contexts=3,
        strength=2.0,
        pairs=(PromptPair("argument", "def push(self, item):", "def push(self, value):", "item", "value"),),
    )
    path = tmp_path_factory.mktemp("configs") / "demo.json"
    path.write_text(configs.dumps(demo))
    return path


@pytest.fixture
def command(capsys):
    """`command("sites", model) -> (exit code, stdout, stderr)`, in this process."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def start():
    """`start("demo", ...)`: the command in a process of its own, as a user starts it."""

    def call(*argv: object, **options) -> subprocess.Popen:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        arguments = [sys.executable, "-m", "jax_interp.cli.main", *map(str, argv)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(arguments, env=environment, **pipes, **options)

    return call


@pytest.fixture(scope="session")
def longer_run(run_config: DictionaryRunConfig) -> DictionaryRunConfig:
    """Enough steps to be interrupted among them."""
    return dataclasses.replace(run_config, dictionary=dataclasses.replace(run_config.dictionary, steps=4000))
