"""How a dictionary decides which latents are on: one file per activation.

An activation is a pytree (what it learns is its leaves) with

    encode(dictionary, x)         the code of inference                     every activation
    encode_batch(dictionary, x)   the code that is trained on               where the two differ: BatchTopK
    observe(dictionary, code)     the activation after a training step      where it follows what it sees: BatchTopK
    decide(dictionary, code)      `code` with the values that its pre-activations give, and
    takes_part(dictionary, pre)   those pre-activations that losses can depend on: where latents are not chosen by
                                  comparison, which ReLU, JumpReLU and Gated have
    scaled(factor)                what it is for inputs `factor` times as large: a'(factor · z) = factor · a(z)

and the choice of one, `init(n_features, dtype)`, makes it. Where nothing is learnt the choice is the activation.
"""

from jax_interp.dictionaries.activations.batch_topk import BatchTopK
from jax_interp.dictionaries.activations.gated import Gate, Gated
from jax_interp.dictionaries.activations.group_max import GroupMax
from jax_interp.dictionaries.activations.jumprelu import Jump, JumpReLU
from jax_interp.dictionaries.activations.matching_pursuit import MatchingPursuit
from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.activations.topk import TopK

Activation = ReLU | Gated | JumpReLU | TopK | GroupMax | BatchTopK | MatchingPursuit

__all__ = [
    "Activation",
    "BatchTopK",
    "Gate",
    "Gated",
    "GroupMax",
    "Jump",
    "JumpReLU",
    "MatchingPursuit",
    "ReLU",
    "TopK",
]
