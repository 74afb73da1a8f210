"""Paths through a model: path patching, direct paths, path expansion, and the unraveled view."""

from jax_interp.circuits.paths.components import Parts, Shape, shape_of
from jax_interp.circuits.paths.expansion import PathExpansion, expand
from jax_interp.circuits.paths.patching import direct_paths, path_patch
from jax_interp.circuits.paths.unraveled import patch_paths

__all__ = ["Parts", "PathExpansion", "Shape", "direct_paths", "expand", "patch_paths", "path_patch", "shape_of"]
