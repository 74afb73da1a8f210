"""Synthetic worlds: activations whose features are known, to test dictionaries on.

    world = small_bench(jax.random.key(0))
    x, codes = world.sample(jax.random.key(1), 4096)          on the device, also inside a jitted step
    sae = train_dictionary(variants.topk("x", k=6), *as_model(world, jax.random.key(1)))
    score(sae, world, jax.random.key(2)).mcc      from jax_interp.dictionaries.evaluation.recovery

world.py         `World`: directions, bias and codes; `as_model`: makes a model from a world
firing.py        which features fire, correlated or not, and their magnitudes
small_worlds.py  sharkey, tree, sparse_but_wrong: small worlds with one difficulty each
circle.py        one circle among single features
forest.py        SynthSAEBench: all difficulties at once, in full size and small
shrinkage.py     a world of two models, and the minima of the crosscoder losses in closed form
"""

from jax_interp.toys.synthetic.circle import CircleCodes, circle
from jax_interp.toys.synthetic.firing import Codes, Copula, Normal, Uniform, correlated, independent, low_rank
from jax_interp.toys.synthetic.forest import Forest, SynthSAEBenchConfig, small_bench, synth_sae_bench
from jax_interp.toys.synthetic.shrinkage import two_models
from jax_interp.toys.synthetic.small_worlds import sharkey, sparse_but_wrong, sparse_but_wrong_50, tree
from jax_interp.toys.synthetic.world import World, WorldModel, as_model

__all__ = [
    "CircleCodes",
    "Codes",
    "Copula",
    "Forest",
    "Normal",
    "SynthSAEBenchConfig",
    "Uniform",
    "World",
    "WorldModel",
    "as_model",
    "circle",
    "correlated",
    "independent",
    "low_rank",
    "sharkey",
    "small_bench",
    "sparse_but_wrong",
    "sparse_but_wrong_50",
    "synth_sae_bench",
    "tree",
    "two_models",
]
