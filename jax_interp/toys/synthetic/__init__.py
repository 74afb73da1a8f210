"""Worlds with known features, and what a dictionary makes of them.

    world = small_bench(jax.random.key(0))
    x, codes = world.sample(jax.random.key(1), 4096)          on the device: draw inside a jitted step
    sae = train_dictionary(variants.topk("x", k=6), *as_model(world, jax.random.key(1)))
    score(sae, world, jax.random.key(2)).mcc      of jax_interp.dictionaries.evaluation.recovery

world.py     a World: directions, bias, and where its codes come from; a world as a model, to train on
firing.py    correlated firing, magnitudes
small_worlds.py sharkey, tree, sparse_but_wrong: small worlds with one difficulty each
forest.py    SynthSAEBench: all difficulties at once, in full size and small
shrinkage.py two models, and what the crosscoder losses make of them in closed form
"""

from jax_interp.toys.synthetic.firing import Codes, Copula, Normal, Uniform, correlated, independent, low_rank
from jax_interp.toys.synthetic.forest import Forest, small_bench, synth_sae_bench
from jax_interp.toys.synthetic.shrinkage import two_models
from jax_interp.toys.synthetic.small_worlds import sharkey, sparse_but_wrong, sparse_but_wrong_50, tree
from jax_interp.toys.synthetic.world import World, WorldModel, as_model

__all__ = [
    "Codes",
    "Copula",
    "Forest",
    "Normal",
    "Uniform",
    "World",
    "WorldModel",
    "as_model",
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
