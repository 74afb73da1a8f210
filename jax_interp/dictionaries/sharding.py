"""Dictionaries on a mesh: features over `tensor`, rows over `replicate`, `data` and `fsdp`, weights over `fsdp` too.

    train_dictionary(config, model, batch_at, place=make_mesh(data=4, tensor=2))

Each device encodes its own rows with its own features. A step communicates only what it must: partial sums of the
decoder's output [row, d], gradients summed over the devices that hold other rows, k candidates per device for TopK, and
scalars. With `fsdp`, weights are also gathered before they are multiplied.

If `tensor` has more than one device, codes are dense. Products with a masked dense code need no communication, but
sparse products would need it. Only the codes of matching pursuit stay sparse, and they gather all decoder rows. Steps
leave shardings to the compiler (`jax_interp.training.placement.automatic`), also on a mesh with explicit axes.
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec as P

from jax_interp.training.meshes import ROWS, row_axes, row_shards
from jax_interp.training.sharding import Rules, used

# A pattern matches the end of an address. The same rules therefore serve a learner, both moments of Adam, and an
# exported dictionary.
LEARNER_RULES = (
    ("sources.*.W_dec", P("tensor", None, "fsdp")),
    ("W_enc", P("fsdp", "tensor")),
    ("W_dec", P("tensor", "fsdp")),
    ("W_skip", P("fsdp", None)),
    ("b_enc", P("tensor")),
    ("since_fired", P("tensor")),
)
STREAM_RULES = (("stream.buffer.rows", P(ROWS, None)),)


def rules(tree: object) -> Rules:
    """The sharding rules that decide something in `tree`.

    Args:
      tree: a learner, a training state with its stream, or a dictionary.

    Returns:
      Pairs of an address pattern and a `PartitionSpec`. The first pattern that matches an address decides.
    """
    return used(dictionary_rules(), tree)


def dictionary_rules() -> Rules:
    """The rules of all dictionaries, whatever their activation."""
    from jax_interp.dictionaries.activations import ACTIVATIONS  # its files import this one

    per_feature = dict.fromkeys(name for kind in ACTIVATIONS for name in kind.trained_class().per_feature)
    of_activations = ((f"activation.{name}", P("tensor")) for name in per_feature)
    return (*STREAM_RULES, *LEARNER_RULES, *of_activations)


def feature_shards() -> int:
    """The number of devices that share the features in the current mesh. 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("tensor", 1)


def row_devices() -> int:
    """The number of devices that share the rows in the current mesh. 1 without a mesh."""
    return row_shards(jax.sharding.get_abstract_mesh())


def rows_spec(n: int) -> tuple[str, ...] | None:
    """The mesh axes over which `n` rows are sharded. None if `n` rows cannot be divided equally among their devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return row_axes(mesh) if n % row_shards(mesh) == 0 else None
