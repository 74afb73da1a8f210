"""Every patching grid gives the numbers of TransformerLens's own functions, on the same random weights."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from test_transformer_lens_analysis import VOCAB, reference, tokenizer

from jax_interp.circuits import LogitDifference, make_contrast
from jax_interp.circuits.sweeps import EVERY, patch, patch_every
from jax_interp.models import load

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity needs torch: `make parity`")
pytest.importorskip("transformer_lens", reason="parity needs transformer-lens: `make parity`")

FUNCTIONS = {
    "resid_pre": "resid_pre",
    "resid_mid": "resid_mid",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "attn_head_out_by_pos": "head_out_by_pos",
    "attn_head_q_by_pos": "head_q_by_pos",
    "attn_head_k_by_pos": "head_k_by_pos",
    "attn_head_v_by_pos": "head_v_by_pos",
    "attn_head_pattern_by_pos": "pattern_by_dest",
    "attn_head_pattern_dest_src_pos": "pattern_by_dest_src",
    "attn_head_out_all_pos": "head_out",
    "attn_head_q_all_pos": "head_q",
    "attn_head_k_all_pos": "head_k",
    "attn_head_v_all_pos": "head_v",
    "attn_head_pattern_all_pos": "pattern",
}
EVERY_FUNCTIONS = {
    "block_every": "blocks",
    "attn_head_all_pos_every": "heads",
    "attn_head_by_pos_every": "heads_by_pos",
}
ANSWERS, OTHERS = [5, 9], [7, 2]


class Case:
    """One model in both libraries, two prompts of each kind, and the cache of the clean run."""

    def __init__(self, family: str, folder):
        from transformer_lens.model_bridge import TransformerBridge

        hf = reference(family)
        hf.save_pretrained(folder / "model")
        self.ours, _ = load(folder / "model")
        name = family if family == "gpt2" else "meta-llama/Llama-2-7b-hf"
        words = tokenizer(folder / "tokenizer")
        self.theirs = TransformerBridge.boot_transformers(name, hf_model=hf, tokenizer=words, device="cpu")
        self.theirs.enable_compatibility_mode(no_processing=True, disable_warnings=True)
        draw = np.random.default_rng(0)
        self.clean, self.corrupted = draw.integers(1, VOCAB, (2, 2, 6))
        self.corrupted[:, 0] = self.clean[:, 0]  # a first token in common, as in real contrasts
        metric = LogitDifference(jnp.asarray(ANSWERS), jnp.asarray(OTHERS))
        self.contrast = make_contrast(self.clean, self.corrupted, metric)
        with torch.no_grad():
            _, self.cache = self.theirs.run_with_cache(torch.tensor(self.clean))

    def run(self, name: str) -> np.ndarray:
        """The numbers of TransformerLens's function."""
        from transformer_lens import patching

        rows = torch.arange(2)
        metric = lambda logits: (logits[rows, -1, ANSWERS] - logits[rows, -1, OTHERS]).mean()
        with torch.no_grad():
            function = getattr(patching, f"get_act_patch_{name}")
            return function(self.theirs, torch.tensor(self.corrupted), self.cache, metric).numpy()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("case"))


@pytest.mark.parametrize("theirs", FUNCTIONS)
def test_a_grid(case, theirs):
    ours = patch(case.ours, case.contrast, FUNCTIONS[theirs]).mean()
    expected = case.run(theirs)
    np.testing.assert_allclose(ours.values, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
    assert np.ptp(expected) > 1e-2


@pytest.mark.parametrize("theirs", EVERY_FUNCTIONS)
def test_several_grids(case, theirs):
    """TransformerLens fills keys and values up with zeros where there are fewer heads, and puts positions first."""
    expected = case.run(theirs)
    found = patch_every(case.ours, case.contrast, EVERY_FUNCTIONS[theirs])
    assert list(found) == list(EVERY[EVERY_FUNCTIONS[theirs]])
    for one, values in zip(found.values(), expected, strict=True):
        mine = one.mean()
        mine = np.moveaxis(mine.values, 2, 1) if "dest" in mine.axes else mine.values
        padded = np.zeros(values.shape)
        padded[tuple(map(slice, mine.shape))] = mine
        np.testing.assert_allclose(padded, values, atol=1e-4 * max(1.0, np.abs(values).max()))
