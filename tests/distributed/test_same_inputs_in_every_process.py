"""Two hosts whose files differ under one name: training on a mixture of two models or texts is refused."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from started import Started, free_port

from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models.hf.load import load
from jax_interp.models.hf.save import save

# Each process works in a folder of its own, as hosts with disks of their own do.
IN_OWN_FOLDER = """
import os, sys
from jax_interp.cli.main import main
os.chdir(os.path.join(sys.argv[1], sys.argv[2]))
coordinator = ["--coordinator", sys.argv[3], "--processes", "2", "--process", sys.argv[2]]
sys.exit(main([*sys.argv[4:], *coordinator]))
"""


def train_in(tmp_path: Path) -> Started:
    script = tmp_path / "in_own_folder.py"
    script.write_text(IN_OWN_FOLDER)
    command = ("train-dictionary", "stdlib_small_topk", "--model", "model", "--text", "text", "--mesh", "data=2")
    small = ("--dictionary.steps", "2", "--evaluate-sequences", "8", "--page.features", "0", "--run-dir")
    words = [str(script), str(tmp_path), "{process}", f"127.0.0.1:{free_port()}", *command, *small]
    return Started([*words, str(tmp_path / "run")], 2, tmp_path / "output")


def write_inputs(folder: Path, tokenizer: Tokenizer | None, model, text: str) -> None:
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "all.txt").write_text(text)
    save(model, folder / "model", tokenizer=tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("differs", ["model", "text"])
def test_hosts_with_other_files_are_refused(differs, tmp_path):
    model, tokenizer = load("stdlib-small")
    text = Path(jax.__file__).parent.joinpath("_src", "core.py").read_text()
    write_inputs(tmp_path / "0", tokenizer, model, text)
    if differs == "model":  # one number of one layer, which its shard alone would see
        leaves, tree = jax.tree.flatten(model)
        leaves = [
            leaf.at[(0,) * leaf.ndim].add(jnp.asarray(1, leaf.dtype)) if leaf.ndim > 2 else leaf for leaf in leaves
        ]
        model = jax.tree.unflatten(tree, leaves)
    write_inputs(tmp_path / "1", tokenizer, model, text + ("# more\n" * 400 if differs == "text" else ""))
    with train_in(tmp_path) as run:
        assert run.end() == [2, 2], run.all_errors()
        assert f"the {differs}" in run.errors(0)
        assert "of process 1 differs from that of process 0" in run.errors(0)
        assert run.errors(1) == ""
    assert not (tmp_path / "run" / "checkpoints").exists()
