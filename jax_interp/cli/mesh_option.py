"""The option `--mesh` of all commands that use several devices.

A run over several processes uses all their devices by default: `--mesh data=-1`. Commands without this option run in
one process only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from jax_interp.core.processes import process_count

if TYPE_CHECKING:  # JAX is imported when the command runs, so that help is fast
    from jax.sharding import Mesh


@dataclass(frozen=True, kw_only=True)
class MeshOption:
    """On which devices a command computes."""

    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXIS=SIZE[,...]")] = None
    """Compute on several devices, such as data=2,fsdp=2. The axes are replicate, data, fsdp and tensor; -1 means
    all other devices. Default: one device; all devices (data=-1) if there are several processes."""

    def devices(self) -> Mesh | None:
        """The mesh; None for one device.

        Raises:
          UserError: there is no such mesh, or it has no device of some process.
        """
        if self.mesh is None and process_count() == 1:
            return None
        from jax_interp.training.meshes import mesh_of

        return mesh_of(self.mesh or "data=-1")
