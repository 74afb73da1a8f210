"""A description of a model in figures, and a sample of its text."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import jax

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.recipes.demo.intervention import continuation, token_texts
from jax_interp.recipes.dictionary import Inputs
from jax_interp.surgery import Model


def describe(name: str, inputs: Inputs) -> dict[str, Any]:
    """The model's sizes, its text, and the figures in the `results.json` next to its weights, if there is one."""
    config = inputs.model.config
    return {
        "name": Path(name).name if Path(name).is_dir() else name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(inputs.model)),
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "vocab_size": config.vocab_size,
        "n_ctx": config.n_ctx,
        "text": inputs.text.source,
        "train_tokens": int(inputs.text.train.size),
        "validation_tokens": int(inputs.text.validation.size),
        "results": training_results(name),
    }


def training_results(name: str) -> dict[str, Any] | None:
    """Figures of the model's training, from a `results.json` in the package, next to the weights, or in the training
    run that exported them; None if there is none."""
    directory = Path(name)
    if not directory.is_dir():
        directory = Path(str(files("jax_interp") / "assets" / name))
    for path in (directory / "results.json", directory.parent / "results.json"):
        if path.is_file():
            try:
                results = read_json(path, nonfinite=True)
                validation, induction = results["validation"], results["induction"]
                return {
                    "validation": {"loss": validation["loss"]}
                    | {name: validation[name] for name in ("bits_per_byte",) if name in validation},
                    "induction": {name: induction[name] for name in ("first_half", "second_half")},
                } | {name: results[name] for name in ("baseline",) if name in results}
            except (UserError, KeyError, TypeError):  # another file with this name, such as a demo's results
                return None
    return None


def write(model: Model, tokenizer: Tokenizer, prompt: str, new_tokens: int) -> dict[str, Any]:
    """The likeliest continuation of a prompt: the texts of all tokens, and the number of prompt tokens among them."""
    ids = tokenizer.encode(prompt, bos=tokenizer.bos_id is not None)
    texts = continuation(model, tokenizer, ids, new_tokens)
    return {"texts": texts, "prompt_tokens": len(token_texts(tokenizer, ids))}
