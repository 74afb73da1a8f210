"""Steering that is trained: interventions, objectives, and one compiled step for many concepts, layers and seeds."""

from jax_interp.steering.trained.completions import ChangedTokens, Completions
from jax_interp.steering.trained.config import Member, TrainedSteeringConfig
from jax_interp.steering.trained.intervention import INTERVENTIONS, Intervened, Intervention, InterventionConfig
from jax_interp.steering.trained.interventions import (
    DiReFT,
    DiReFTConfig,
    LoReFT,
    LoReFTConfig,
    NoReFT,
    NoReFTConfig,
    RankK,
    RankKConfig,
    ReFTr1,
    ReFTr1Config,
    ScaledVector,
    ScaledVectorConfig,
    SoftPrompt,
    SoftPromptConfig,
    Vector,
    VectorConfig,
)
from jax_interp.steering.trained.interventions.soft_prompt import reserved
from jax_interp.steering.trained.objectives import OBJECTIVES, BiPO, LanguageModelling, Objective, RePS
from jax_interp.steering.trained.saving import load_steering, save_steering
from jax_interp.steering.trained.train import train_steering
from jax_interp.steering.trained.trained import TrainedMembers, TrainedSteering

__all__ = [
    "INTERVENTIONS", "OBJECTIVES", "BiPO", "ChangedTokens", "Completions", "DiReFT", "DiReFTConfig", "Intervened",
    "Intervention", "InterventionConfig", "LanguageModelling", "LoReFT", "LoReFTConfig", "Member", "NoReFT",
    "NoReFTConfig", "Objective", "RankK", "RankKConfig", "ReFTr1", "ReFTr1Config", "RePS", "ScaledVector",
    "ScaledVectorConfig", "SoftPrompt", "SoftPromptConfig", "TrainedMembers", "TrainedSteering",
    "TrainedSteeringConfig", "Vector", "VectorConfig", "load_steering", "reserved", "save_steering", "train_steering",
]  # fmt: skip
