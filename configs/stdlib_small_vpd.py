"""All matrices of all blocks of stdlib-small, by the recipe of VPD 2026 scaled to its size.

    jax-interp decompose stdlib_small_vpd

Made for one GPU; a laptop can start it. Transformer importance, random subsets of matrices, a persistent adversary for
each row and position, KL to the model's own predictions. No figures have been measured for it yet.
"""

from jax_interp.cli.decompose import DecompositionRunConfig
from jax_interp.decomposition.config import DecompositionConfig, Schedule, WarmUp
from jax_interp.decomposition.importance import TransformerGates
from jax_interp.decomposition.losses import Faithfulness, ImportanceMinimality, PersistentPGD, StochasticSubset

CONFIG = DecompositionRunConfig(
    decomposition=DecompositionConfig(
        matrices=("blocks.*.attn", "blocks.*.mlp"),
        C={"*.mlp.*": 1024, "*.attn.[qk]": 256, "*": 512},
        importance=TransformerGates(d_model=512, blocks=4, heads=8, d_mlp=2048, remat=True),
        warm_up=WarmUp(400, 1e-3, 0.0),
        losses=(
            ImportanceMinimality(1e-3, p=2.0, p_final=0.4, frequency=0.5),
            StochasticSubset(0.5),
            PersistentPGD(0.5),
            Faithfulness(1e7),
        ),
        compare="kl",
        steps=20_000,
        batch=32,
        schedule=Schedule(3e-4, "cosine", final=0.1),
        clip=0.01,
        remat=True,
    ),
    target="stdlib-small",
    context=128,
    evaluate_rows=16,
    linearity_rows=4,
    adversary_steps=(20, 80),
)
