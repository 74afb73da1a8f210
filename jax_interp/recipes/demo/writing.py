"""What a model is, in figures, and what it writes."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.models import generate
from jax_interp.recipes.demo.intervention import pieces
from jax_interp.recipes.dictionary import Inputs


def about(name: str, model: Any, inputs: Inputs) -> dict[str, Any]:
    """Sizes, the text, and the figures that were kept with the weights (`results.json`), where there are any."""
    config = model.config
    return {
        "name": Path(name).name if Path(name).is_dir() else name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "vocab_size": config.vocab_size,
        "n_ctx": config.n_ctx,
        "text": inputs.text.source,
        "train_tokens": int(inputs.text.train.size),
        "validation_tokens": int(inputs.text.validation.size),
        "results": kept_results(name),
    }


def kept_results(name: str) -> dict[str, Any] | None:
    """The `results.json` beside a model's weights: the package's, a directory's, or the training run's that exported
    it."""
    directory = Path(name)
    if not directory.is_dir():
        directory = Path(str(files("jax_interp") / "assets" / name))
    for path in (directory / "results.json", directory.parent / "results.json"):
        if path.is_file():
            try:
                kept = json.loads(path.read_text())
                return {
                    "validation": {"loss": kept["validation"]["loss"]}
                    | {name: kept["validation"][name] for name in ("bits_per_byte",) if name in kept["validation"]},
                    "induction": {name: kept["induction"][name] for name in ("first_half", "second_half")},
                } | {name: kept[name] for name in ("baseline",) if name in kept}
            except (json.JSONDecodeError, KeyError, TypeError):  # another file of that name, a demo's own say
                return None
    return None


def continuation(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> dict[str, Any]:
    """The likeliest continuation, as texts of tokens."""
    ids = tokenizer.encode(prompt, bos=tokenizer.bos_id is not None)
    stop = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    new = np.asarray(generate(model, jnp.asarray([ids], jnp.int32), new_tokens, stop=stop))[0].tolist()
    new = new[: new.index(stop[0])] if stop and stop[0] in new else new
    return {"texts": pieces(tokenizer, ids, new), "prompt_tokens": len(pieces(tokenizer, ids, []))}
