"""Dictionaries on a mesh: features over `tensor`, rows over `data` and `fsdp`, weights over `fsdp` as well.

    mesh = make_mesh(data=4, tensor=2, explicit=False)
    with jax.set_mesh(mesh):
        state = init_train_state(config, model, batch_at)
        state = shard(state, rules(state), mesh)

Each device encodes its rows with its features. What passes between devices in a step is what one would write by hand:
the partial sums of the decoder [row, d], the gradients of each device's own features over the rows of the others, for
TopK the k candidates of each device, and scalars. With `fsdp` weights are gathered before their products besides.

On a mesh with more than one device over `tensor` codes are dense: products with a masked code are local there and its
sparse arithmetic is not. Only those of matching pursuit stay sparse, and ask for all decoder rows. Meshes are for the
compiler to fill in (`explicit=False`).
"""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec as P

ROWS = ("data", "fsdp")

# By the end of an address: the learner's dictionary, both of Adam's moments, and an exported dictionary alike.
LEARNER_RULES = (
    ("sources.*.W_dec", P("tensor", None, "fsdp")),
    ("W_enc", P("fsdp", "tensor")),
    ("W_dec", P("tensor", "fsdp")),
    ("W_skip", P("fsdp", None)),
    ("b_enc", P("tensor")),
    ("since_fired", P("tensor")),
)
STREAM_RULES = (("stream.buffer.rows", P(ROWS, None)),)


def rules(tree: object) -> tuple[tuple[str, P], ...]:
    """The rules that decide something in `tree`: a learner, a training state with its stream, a dictionary."""
    from jax_interp.core.leaves import flatten
    from jax_interp.dictionaries.activations import ACTIVATIONS  # its files import this one
    from jax_interp.training.sharding import matches

    per_feature = dict.fromkeys(name for kind in ACTIVATIONS for name in kind.trained_class().per_feature)
    of_activations = ((f"activation.{name}", P("tensor")) for name in per_feature)
    every = (*STREAM_RULES, *LEARNER_RULES, *of_activations, ("**", P()))
    decide = {next(i for i, (end, _) in enumerate(every) if matches(end, name)) for name in flatten(tree)}
    return tuple(rule for i, rule in enumerate(every) if i in decide)


def feature_shards() -> int:
    """Over how many devices features are split in the mesh at hand; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("tensor", 1)


def rows_spec(n: int) -> tuple[str, ...] | None:
    """The mesh axes that `n` rows are split over; None where they do not divide."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    axes = tuple(axis for axis in ROWS if axis in shape)
    return axes if n % math.prod(shape[axis] for axis in axes) == 0 else None
