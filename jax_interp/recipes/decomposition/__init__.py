"""The recipe of `decompose`: decompose a model's matrices into components, measure them, and write a page.

    result = decompose(DecompositionRunConfig(preset("tms_5_2"), target="tms:5-2"), "runs/tms")

The run directory then holds

    config.json, checkpoints/, metrics.jsonl   the run; if it was killed, the same call resumes it
    inputs.json                                fingerprints of the weights and the text; a resume needs the same ones
    decomposition.safetensors                  V and U of every matrix, with the importance function or APD's threshold
    evaluation.json, evaluation-2.json, ...    all figures; the newest is on the page
    report.html                                the page

A method is one file here. It registers how its config is trained, saved, measured and shown (`method.RunMethod`).
"""

from jax_interp.core.registry import discover
from jax_interp.recipes.decomposition.config import DecompositionRunConfig, PageOptions
from jax_interp.recipes.decomposition.inputs import inputs_for
from jax_interp.recipes.decomposition.run import decompose, opened, rewrite_page, train

discover(__name__, __path__)

__all__ = ["DecompositionRunConfig", "PageOptions", "decompose", "inputs_for", "opened", "rewrite_page", "train"]
