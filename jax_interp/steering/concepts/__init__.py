"""A concept benchmark in the manner of AxBench (Wu et al. 2025): steering and detection of concepts.

replies.py    replies under each method and factor; a prompt is a method beside the vectors
judges.py     numbers from 0 to 2: your own function, words of the concept, likelihood under the unsteered model
ratings.py    the numbers of three judges, and their harmonic mean
results.py    factors chosen on half of the instructions, the other half reported; wins against a reference
detection.py  the same directions as detectors, beside a bag of words
"""

from jax_interp.steering.concepts.detection import (
    Detection,
    Detector,
    Latent,
    Projection,
    detect,
    detection_scores,
    detector,
)
from jax_interp.steering.concepts.judges import (
    ConceptWords,
    Fluency,
    InstructionMatch,
    Judge,
    Judges,
    by_function,
    reply_losses,
)
from jax_interp.steering.concepts.ratings import Ratings, harmonic_mean, rate
from jax_interp.steering.concepts.replies import (
    FACTORS,
    Concept,
    Method,
    Prefix,
    Replies,
    Reply,
    Writing,
    no_steering,
    prompt_method,
    write_replies,
)
from jax_interp.steering.concepts.results import (
    BenchmarkResults,
    ConceptResult,
    MethodResult,
    Wins,
    choose_and_report,
    winrate,
)

__all__ = [
    "FACTORS", "BenchmarkResults", "Concept", "ConceptResult", "ConceptWords", "Detection", "Detector",
    "Fluency", "InstructionMatch", "Judge", "Judges", "Latent", "Method", "MethodResult", "Prefix",
    "Projection", "Ratings", "Replies", "Reply", "Wins", "Writing", "by_function", "choose_and_report",
    "detect", "detection_scores", "detector", "harmonic_mean", "no_steering", "prompt_method", "rate",
    "reply_losses", "winrate", "write_replies",
]  # fmt: skip
