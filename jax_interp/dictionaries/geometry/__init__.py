"""Features that are not one-dimensional: groups of latents that together describe a plane, such as the days of a week.

clusters.py          groups of latents with similar decoder directions
irreducibility.py    whether the points of a plane are more than two separate numbers: separability and mixture index
multidimensional.py  the clusters of a dictionary, ranked by how irreducible their reconstructions are
"""

from jax_interp.dictionaries.geometry.clusters import neighbour_clusters, spectral_clusters
from jax_interp.dictionaries.geometry.irreducibility import Mixture, mixture_index, separability, separability_by_angle
from jax_interp.dictionaries.geometry.multidimensional import (
    ClusterFigures,
    ClusterReconstruction,
    PlaneMeasure,
    Ranking,
    cluster_reconstruction,
    rank_clusters,
    sparse_codes,
)

__all__ = [
    "ClusterFigures",
    "ClusterReconstruction",
    "Mixture",
    "PlaneMeasure",
    "Ranking",
    "cluster_reconstruction",
    "mixture_index",
    "neighbour_clusters",
    "rank_clusters",
    "separability",
    "separability_by_angle",
    "sparse_codes",
    "spectral_clusters",
]
