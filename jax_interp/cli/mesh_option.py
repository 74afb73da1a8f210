"""The option `--mesh` of all commands that use several devices.

A run over several processes uses all their devices by default: `--mesh data=-1`. Commands without this option run in
one process only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from jax_interp.core.errors import UserError
from jax_interp.core.processes import process_count

if TYPE_CHECKING:  # JAX is imported when the command runs, so that help is fast
    from jax.sharding import Mesh


@dataclass(frozen=True, kw_only=True)
class MeshOption:
    """On which devices a command computes."""

    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXIS=SIZE[,...]")] = None
    """Compute on several devices, such as data=2,fsdp=2. The axes are data, fsdp and tensor; -1 means all other
    devices. Default: one device; all devices (data=-1) if there are several processes."""

    def devices(self) -> Mesh | None:
        """The mesh; None for one device.

        Raises:
          UserError: there is no such mesh, or it has no device of some process.
        """
        count = process_count()
        if self.mesh is None and count == 1:
            return None
        import jax

        from jax_interp.training.sharding import mesh_of

        mesh = mesh_of(self.mesh or "data=-1")
        without = set(range(count)) - {device.process_index for device in mesh.devices.flat}
        if count > 1 and without:
            raise UserError(
                f"mesh {self.mesh} takes {mesh.size} of {jax.device_count()} devices, none of process {min(without)}: "
                "give a mesh over the devices of all processes (data=-1), or fewer processes"
            )
        return mesh
