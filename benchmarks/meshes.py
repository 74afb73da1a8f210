"""Everything that is trained, on two devices along each mesh axis: how far it is from one device, and what it sends.

    python benchmarks/meshes.py                      all of it (an hour on two cores)
    python benchmarks/meshes.py topk "language model"

The trainings are those of the law `tests/distributed/test_training_on_meshes.py`: three steps of small models, with an
optimizer that does not hide differences. The difference is the largest one of any array of the result, relative to the
norm of the array. The bytes are those that one device sends in a step, by the compiled program. Nothing is timed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
sys.path.insert(0, str(Path(__file__).parents[1]))  # the trainings are defined in tests/

from jax_interp.core.user_cache import use_compilation_cache
from jax_interp.training.collectives import Collective
from jax_interp.training.meshes import AXES, make_mesh
from tests.distributed.compiled_steps import collectives_of
from tests.distributed.test_training_on_meshes import difference, numbers, on_one_device
from tests.distributed.trainable import everything


def sent(rows: list[Collective]) -> str:
    """The collectives of a step and the kilobytes that a device sends: `3 all-reduce 12.5`."""
    kinds: dict[str, tuple[int, float]] = {}
    for row in rows:
        count, total = kinds.get(row.kind, (0, 0.0))
        kinds[row.kind] = count + row.count, total + row.sent / 1e3
    return ", ".join(f"{count} {kind} {total:.1f}" for kind, (count, total) in kinds.items()) or "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of trainings; without them, all")
    use_compilation_cache()
    names, known = parser.parse_args().names, everything()
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(known)}")
    print("| training | axis | largest difference | collectives of a step, kB sent by a device |\n|---|---|---:|---|")
    for name in names or known:
        for axis in AXES:
            mesh = make_mesh(**{axis: 2}, explicit=False)
            far, _ = difference(on_one_device(name), numbers(known[name]()(mesh)))
            print(f"| {name} | {axis} | {far:.0e} | {sent(collectives_of(known[name](), mesh)[1])} |", flush=True)


if __name__ == "__main__":
    main()
