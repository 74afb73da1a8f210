"""The differences between our numbers and those of `transformers`, for one small random model of each family.

    make parity        # once, for its environment
    .venv-parity/bin/python benchmarks/parity.py

The input is 3 x 17 tokens, and the attention of the models is peaked. float32: the largest difference of logits, hidden
states and attention maps. bfloat16: the distance of our logits from the float32 logits, divided by their norm; the same
for transformers' logits; and the distance between our logits and theirs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from family_cases import CASES, reference


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from jax_interp.models import load
    from jax_interp.surgery import read

    call = jax.jit(lambda model, tokens: model(tokens))
    tokens = np.random.default_rng(0).integers(0, 101, (3, 17))
    print("| | logits | hidden | attention | bf16, ours | bf16, theirs | bf16, apart |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        theirs = reference(case)
        with tempfile.TemporaryDirectory() as directory, torch.no_grad():
            theirs.save_pretrained(directory)
            model, _ = load(directory)
            rounded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="eager")
            out = theirs(torch.tensor(tokens), output_hidden_states=True, output_attentions=True)
            low = rounded(torch.tensor(tokens)).logits.float().numpy()
        logits, acts = call(read(model, "blocks.*.resid_pre", "blocks.*.attn.pattern"), jnp.asarray(tokens))
        apart = lambda ours, theirs: max(np.abs(a - b.numpy()).max() for a, b in zip(ours, theirs, strict=True))
        hidden = apart(acts["blocks.*.resid_pre"], out.hidden_states[:-1])
        attention = apart(acts["blocks.*.attn.pattern"], out.attentions)
        exact = out.logits.numpy()
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
        ours = np.asarray(call(half, jnp.asarray(tokens)).astype(jnp.float32))
        row = [np.abs(logits - exact).max(), hidden, attention]
        row += [np.linalg.norm(x - y) / np.linalg.norm(exact) for x, y in ((ours, exact), (low, exact), (ours, low))]
        print(f"| {case} | " + " | ".join(f"{x:.1e}" for x in row) + " |", flush=True)


if __name__ == "__main__":
    main()
