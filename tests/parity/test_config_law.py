"""Every attribute of every family's `config.json`, present, null and absent: the logits of transformers, or a refusal.

The sequences are longer than the sliding windows. Where transformers refuses a config, ours may do as it likes.
"""

from __future__ import annotations

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from config_variants import DEFAULTS, Variant, variants
from family_cases import REFERENCES, reference
from generated import drawn

from jax_interp.core.errors import UserError
from jax_interp.models import load, load_shapes
from jax_interp.models.hf.attributes import IRRELEVANT

pytestmark = [pytest.mark.parity, pytest.mark.hardening]
torch = pytest.importorskip("torch", reason="parity needs torch and transformers: `make parity`")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: `make parity`")

TOKENS = np.random.default_rng(0).integers(0, 101, (2, 23))


@pytest.fixture(scope="module")
def call():
    return jax.jit(lambda model, tokens: model(tokens))


def content(case: str) -> dict:
    architecture, values = REFERENCES[case]
    config_class = getattr(transformers, architecture).config_class
    return {"architectures": [architecture], "model_type": config_class.model_type, **values}


class Theirs:
    """The models of transformers for the variants of one `config.json`."""

    def __init__(self, case: str):
        self.model_class = getattr(transformers, REFERENCES[case][0])
        self.base = reference(case)
        self.logits_of_base = self.logits(self.base)

    @staticmethod
    def logits(model) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor(TOKENS)).logits.numpy()

    def model(self, directory):
        """The model of a directory's `config.json`, with the weights of the base where the shapes are the same."""
        config = self.model_class.config_class.from_pretrained(directory, attn_implementation="eager")
        torch.manual_seed(0)
        model = self.model_class(config).eval()
        own, base = model.state_dict(), self.base.state_dict()
        tied = getattr(config, "tie_word_embeddings", None) == getattr(self.base.config, "tie_word_embeddings", None)
        if tied and {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in base.items()}:
            model.load_state_dict(base)
            return model, True
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(10) if parameter.ndim >= 2 else parameter.add_(0.3 * torch.randn_like(parameter))
        return model, False


def fault(variant: Variant, theirs: Theirs, config, directory, call) -> str | None:
    """What is wrong with our reading of a variant; None if nothing is."""
    (directory / "config.json").write_text(json.dumps(variant.values))
    try:
        ours = load_shapes(directory).config
    except UserError:
        return None
    try:
        model, same_weights = theirs.model(directory)
        right = theirs.logits(model)
    except Exception:  # its validation, a shape or a missing value
        return None
    if same_weights and ours == config:  # our logits of this config are compared in test_transformers.py
        found = theirs.logits_of_base
    else:
        model.save_pretrained(directory / "changed")
        (directory / "changed" / "config.json").write_text(json.dumps(variant.values))
        try:
            found = np.asarray(call(load(directory / "changed")[0], jnp.asarray(TOKENS)))
        except UserError:
            return None
    error = float(np.abs(found - right).max()) / max(1.0, float(np.abs(right).max()))
    return None if error < 1e-4 else f"{variant}: logits differ by {error:.2g}"


@pytest.mark.parametrize("case", REFERENCES)
def test_logits_of_every_variant_or_a_refusal(case, tmp_path, call, tally):
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    values, theirs = content(case), Theirs(case)
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = load_shapes(tmp_path).config
    every = list(variants(values, theirs.base.config.to_dict(), rng))
    tried = rng.sample(every, min(len(every), drawn(14, len(every))))
    faults = [found for variant in tried if (found := fault(variant, theirs, config, tmp_path, call))]
    tally("config.json, every attribute present, null, absent", tried=len(tried), broken=len(faults))
    assert not faults, f"seed {seed}: {faults}"


def defaults(case: str) -> dict[str, dict]:
    """What transformers makes of each attribute of a case that is absent, and of one that is null."""
    architecture, values = REFERENCES[case]
    config_class = getattr(transformers, architecture).config_class
    found: dict[str, dict] = {"absent": {}, "null": {}}
    for key in config_class(**values).to_dict():
        if key in IRRELEVANT:
            continue
        rest = {name: value for name, value in values.items() if name != key}
        for how, changed in (("absent", rest), ("null", rest | {key: None})):
            try:
                found[how][key] = json.loads(json.dumps(config_class(**changed).to_dict()[key]))
            except Exception:  # refused
                continue
    return found


def test_the_table_of_defaults_is_that_of_transformers():
    """tests/models/test_config_files.py reads the table, so that `make test` needs no torch."""
    table = {case: defaults(case) for case in REFERENCES}
    if not DEFAULTS.exists() or json.loads(DEFAULTS.read_text()) != table:
        new = DEFAULTS.with_suffix(".new.json")
        lines = (f"{json.dumps(case)}: {json.dumps(found)}" for case, found in table.items())
        new.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        pytest.fail(f"transformers has other defaults now. See {new}; if they are right, replace {DEFAULTS.name} by it")
