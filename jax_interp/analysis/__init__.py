"""Analysis of a model: pure functions of its weights and of the activations that `read` returns.

    logits, acts = call(read(model, needed(model, direct_logit_attribution)), tokens)
    direct_logit_attribution(model, acts, answer, other, unit="head").top(10)

Most functions return `Parts`: rows with TransformerLens's labels. The rows of a decomposition sum to the value that is
decomposed. This holds for the raw weights, so you do not need to fold norms first. All functions work under `jax.jit`
and `jax.vmap`. docs/analysis.md describes them by the questions that they answer.
"""

from jax_interp.analysis.addresses import NEEDED, needed, reads_activations
from jax_interp.analysis.circular import CircularProbe, fit_circle, intervention_effects
from jax_interp.analysis.composition import all_composition_scores, composition_baseline, composition_scores
from jax_interp.analysis.factored_matrix import FactoredMatrix
from jax_interp.analysis.growth import NormGrowth, norm_growth
from jax_interp.analysis.head_and_neuron_results import (
    accumulated_bias,
    get_full_resid_decomposition,
    stack_head_results,
    stack_neuron_results,
)
from jax_interp.analysis.head_circuits import OV, QK, eigen_copying_score, full_OV, full_QK
from jax_interp.analysis.head_detectors import (
    detect_head,
    diagonal_scores,
    duplicate_token_pattern,
    induction_pattern,
    previous_token_pattern,
)
from jax_interp.analysis.lens import TunedLens, init_tuned_lens, kl_by_layer, logit_lens, tuned_lens
from jax_interp.analysis.lens_training import TunedLensConfig, load_tuned_lens, save_tuned_lens, train_tuned_lens
from jax_interp.analysis.logit_attribution import direct_logit_attribution, logit_attrs, logit_directions
from jax_interp.analysis.neurons import (
    ActivationStatistics,
    NeuronStatistics,
    activation_statistics,
    neuron_statistics,
)
from jax_interp.analysis.norm_at_scale import NormAtScale, apply_ln_to_stack, norm_into
from jax_interp.analysis.parts import Parts
from jax_interp.analysis.readout import readout, token_ranks, top_tokens, unembedding
from jax_interp.analysis.residual import accumulated_resid, decompose_resid
from jax_interp.analysis.singular import SingularVectors, singular_vectors
from jax_interp.analysis.weights import (
    W_E,
    W_K,
    W_O,
    W_Q,
    W_U,
    W_V,
    W_gate,
    W_in,
    W_out,
    W_pos,
    b_in,
    b_K,
    b_O,
    b_out,
    b_Q,
    b_U,
    b_V,
)
from jax_interp.models.language_modelling import repeated_tokens

__all__ = [
    "NEEDED",
    "OV",
    "QK",
    "W_E",
    "W_K",
    "W_O",
    "W_Q",
    "W_U",
    "W_V",
    "ActivationStatistics",
    "CircularProbe",
    "FactoredMatrix",
    "NeuronStatistics",
    "NormAtScale",
    "NormGrowth",
    "Parts",
    "SingularVectors",
    "TunedLens",
    "TunedLensConfig",
    "W_gate",
    "W_in",
    "W_out",
    "W_pos",
    "accumulated_bias",
    "accumulated_resid",
    "activation_statistics",
    "all_composition_scores",
    "apply_ln_to_stack",
    "b_K",
    "b_O",
    "b_Q",
    "b_U",
    "b_V",
    "b_in",
    "b_out",
    "composition_baseline",
    "composition_scores",
    "decompose_resid",
    "detect_head",
    "diagonal_scores",
    "direct_logit_attribution",
    "duplicate_token_pattern",
    "eigen_copying_score",
    "fit_circle",
    "full_OV",
    "full_QK",
    "get_full_resid_decomposition",
    "induction_pattern",
    "init_tuned_lens",
    "intervention_effects",
    "kl_by_layer",
    "load_tuned_lens",
    "logit_attrs",
    "logit_directions",
    "logit_lens",
    "needed",
    "neuron_statistics",
    "norm_growth",
    "norm_into",
    "previous_token_pattern",
    "readout",
    "reads_activations",
    "repeated_tokens",
    "save_tuned_lens",
    "singular_vectors",
    "stack_head_results",
    "stack_neuron_results",
    "token_ranks",
    "top_tokens",
    "train_tuned_lens",
    "tuned_lens",
    "unembedding",
]  # fmt: skip
