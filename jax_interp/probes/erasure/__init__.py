"""Concept erasure: edits after which a concept can no longer be read by a linear probe. One file for each erasure."""

from jax_interp.core.registry import discover
from jax_interp.probes.erasure.eraser import ERASURES, AffineEraser, Erasure, MomentErasure, concept_of
from jax_interp.probes.erasure.fit import Erasers, fit_erasers
from jax_interp.probes.erasure.inlp import Inlp
from jax_interp.probes.erasure.judging import Judgement, judge_erasers
from jax_interp.probes.erasure.leace import Leace
from jax_interp.probes.erasure.moments import Moments
from jax_interp.probes.erasure.oracle import OracleEraser, oracle_eraser
from jax_interp.probes.erasure.projection import MeanProjection, Sal
from jax_interp.probes.erasure.scrub import scrub

discover(__name__, __path__)

__all__ = [
    "ERASURES",
    "AffineEraser",
    "Erasers",
    "Erasure",
    "Inlp",
    "Judgement",
    "Leace",
    "MeanProjection",
    "MomentErasure",
    "Moments",
    "OracleEraser",
    "Sal",
    "concept_of",
    "fit_erasers",
    "judge_erasers",
    "oracle_eraser",
    "scrub",
]
