"""Backdoors: what makes a model write a known target, found without knowing the trigger.

audit.py            ordinary prompts, each followed by the target; other targets as decoys
method.py           what a method is given and what it returns: a ranking
methods/            by gradients, by steering, by attribution, by a trained vector, by scans and searches of tokens
null.py             rankings of clean models and decoys as a null distribution, and the decision against it
latent_tokens.py    which tokens a latent fires on
conditions.py       conditions that act together, found one after the other
trojan_detection.py the files and the scores of the Trojan Detection Challenge 2023; bleu.py

    suspect = Suspect(model, dictionary, "blocks.0.resid_post")
    found = GradientRanking().rank(suspect, audit_texts(prompts, target), jax.random.key(0))
    judge(found, null)
"""

from jax_interp.core.registry import discover
from jax_interp.steering.backdoors.audit import AuditTexts, audit_texts, decoy_targets
from jax_interp.steering.backdoors.bleu import bleu
from jax_interp.steering.backdoors.conditions import Condition, find_conditions
from jax_interp.steering.backdoors.latent_tokens import LatentTokens, latent_tokens
from jax_interp.steering.backdoors.method import METHODS, Ranking, Suspect, TriggerMethod
from jax_interp.steering.backdoors.methods.attribution import AttributionRanking
from jax_interp.steering.backdoors.methods.gradient import GradientRanking
from jax_interp.steering.backdoors.methods.greedy_tokens import GreedyTokens
from jax_interp.steering.backdoors.methods.measured import MeasuredRanking
from jax_interp.steering.backdoors.methods.token_scan import TokenScan
from jax_interp.steering.backdoors.methods.trained_vector import TrainedVector
from jax_interp.steering.backdoors.null import Null, Verdict, judge, null_of
from jax_interp.steering.backdoors.trojan_detection import (
    Submission,
    TrojanScore,
    read_submission,
    score_submission,
    write_submission,
)

discover(f"{__name__}.methods", [f"{__path__[0]}/methods"])

__all__ = [
    "METHODS", "AttributionRanking", "AuditTexts", "Condition", "GradientRanking", "GreedyTokens", "LatentTokens",
    "MeasuredRanking", "Null", "Ranking", "Submission", "Suspect", "TokenScan", "TrainedVector", "TriggerMethod",
    "TrojanScore", "Verdict", "audit_texts", "bleu", "decoy_targets", "find_conditions", "judge", "latent_tokens",
    "null_of", "read_submission", "score_submission", "write_submission",
]  # fmt: skip
