"""Sparse feature circuits and SHIFT: which features of dictionaries, and which of their errors, carry a behaviour.

sites.py              the values whose features are nodes, and what an ablation changes there
effects.py            the effect of each node: attribution, integrated gradients; exact.py: one run for each node
circuit.py            nodes and edges as tables
edges.py              the effect of a node that goes directly through another node
page.py               a circuit as a page
evaluation.py         faithfulness and completeness, with random circuits and neurons beside them
classifier.py         a probe on a named value as a model, so that all of this explains classifiers too
attributed_texts.py   texts with an intended and a spurious attribute
judges.py             who decides which features a classifier should not use
shift.py              find these features, ablate them, train again
"""

from jax_interp.circuits.feature_circuits.attributed_texts import AttributedTexts, from_tables
from jax_interp.circuits.feature_circuits.circuit import FeatureCircuit, random_nodes, same_nodes, select_nodes
from jax_interp.circuits.feature_circuits.classifier import Classifier
from jax_interp.circuits.feature_circuits.edges import feature_edges
from jax_interp.circuits.feature_circuits.effects import EffectsConfig, FeatureEffects, feature_effects
from jax_interp.circuits.feature_circuits.evaluation import (
    EvaluationConfig,
    FaithfulnessCurve,
    KeepFeatures,
    circuit_metrics,
    faithfulness_curve,
)
from jax_interp.circuits.feature_circuits.judges import Candidates, Judge, judge_by_list, judge_by_tokens
from jax_interp.circuits.feature_circuits.page import feature_circuit_page
from jax_interp.circuits.feature_circuits.shift import (
    ShiftConfig,
    Shifted,
    ablate_features,
    classifier_contrast,
    classifier_effects,
    over_seeds,
    shift,
    train_classifier,
)

__all__ = [
    "AttributedTexts", "Candidates", "Classifier", "EffectsConfig", "EvaluationConfig", "FaithfulnessCurve",
    "FeatureCircuit", "FeatureEffects", "Judge", "KeepFeatures", "ShiftConfig", "Shifted", "ablate_features",
    "circuit_metrics", "classifier_contrast", "classifier_effects", "faithfulness_curve", "feature_circuit_page",
    "feature_edges", "feature_effects", "from_tables", "judge_by_list", "judge_by_tokens", "over_seeds",
    "random_nodes", "same_nodes", "select_nodes", "shift", "train_classifier",
]  # fmt: skip
