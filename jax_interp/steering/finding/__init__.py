"""Finding steering vectors: contrast pairs, and directions of all layers, token rules and methods in one pass."""

from jax_interp.steering.finding import methods
from jax_interp.steering.finding.activation_addition import PromptDifference, activation_addition
from jax_interp.steering.finding.contrast_pairs import (
    UnbalancedChoicesWarning,
    balanced,
    imbalance,
    pairs_of_questions,
    pairs_of_texts,
)
from jax_interp.steering.finding.directions import Directions
from jax_interp.steering.finding.factor_prompts import prompts_by_factor
from jax_interp.steering.finding.find import find_directions
from jax_interp.steering.finding.method import DIRECTION_METHODS, DirectionMethod, ReadTexts
from jax_interp.steering.finding.methods.centred_pca import CentredPCA
from jax_interp.steering.finding.methods.lat import LAT
from jax_interp.steering.finding.methods.logistic_direction import LogisticDirection
from jax_interp.steering.finding.methods.mean_difference import MeanDifference
from jax_interp.steering.finding.methods.paired_pca import PairedPCA
from jax_interp.steering.finding.selection import Candidate, Criteria, Selection, select_direction

__all__ = [
    "DIRECTION_METHODS",
    "LAT",
    "Candidate",
    "CentredPCA",
    "Criteria",
    "DirectionMethod",
    "Directions",
    "LogisticDirection",
    "MeanDifference",
    "PairedPCA",
    "PromptDifference",
    "ReadTexts",
    "Selection",
    "UnbalancedChoicesWarning",
    "activation_addition",
    "balanced",
    "find_directions",
    "imbalance",
    "methods",
    "pairs_of_questions",
    "pairs_of_texts",
    "prompts_by_factor",
    "select_direction",
]
