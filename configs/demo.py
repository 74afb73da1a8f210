"""The demo: train a dictionary of 4,096 features on the residual stream of stdlib-small, and use it.

    jax-interp demo

Two CPU cores, under five minutes.
"""

from jax_interp.dictionaries import Adam, variants
from jax_interp.recipes.demo.config import DemoConfig
from jax_interp.recipes.demo.patching import PromptPair
from jax_interp.recipes.dictionary import DictionaryRunConfig

CONFIG = DemoConfig(
    dictionary=DictionaryRunConfig(
        model="stdlib-small",
        text="stdlib",
        dictionary=variants.topk(
            "blocks.2.resid_post", k=32, n_features=4096, steps=300, optimizer=Adam(warmup=30), buffer=32_768
        ),
        batch=8,
        context=256,
        evaluate_sequences=64,
        checkpoint_every=50,
    ),
    opening="import os\nimport sys\n\ndef main(",
    token="self",
    prompt="import os\nimport sys\n\ndef main(",
    new_tokens=48,
    pairs=(
        PromptPair(
            name="an argument's name",
            clean="def push(self, item):\n        self._items.append(",
            corrupted="def push(self, value):\n        self._items.append(",
            clean_answer="item",
            corrupted_answer="value",
        ),
        PromptPair(
            name="an argument's name",
            clean="def f(data):\n    return len(",
            corrupted="def f(name):\n    return len(",
            clean_answer="data",
            corrupted_answer="name",
        ),
        PromptPair(
            name="a bracket to close",
            clean="x = [(1, 2), (3, 4",
            corrupted="x = [(1, 2), [3, 4",
            clean_answer=")",
            corrupted_answer="]",
        ),
    ),
)
