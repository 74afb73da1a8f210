"""Steering: vectors found, trained, applied to each request, and measured."""

from jax_interp.steering.operators import OPERATORS
from jax_interp.steering.placement import Placement, placed
from jax_interp.steering.question_format import QuestionFormat, asked
from jax_interp.steering.question_texts import QuestionTexts, question_texts, read_questions
from jax_interp.steering.questions import Questions, joined_questions
from jax_interp.steering.steer import Steer
from jax_interp.steering.vector import AppliedVector, Steering, SteeringVector

__all__ = [
    "OPERATORS", "AppliedVector", "Placement", "QuestionFormat", "QuestionTexts", "Questions", "Steer", "Steering",
    "SteeringVector", "asked", "joined_questions", "placed", "question_texts", "read_questions",
]  # fmt: skip
