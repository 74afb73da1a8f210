"""The trained interventions. Each method has one file; its config is registered in `INTERVENTIONS`."""

from jax_interp.core.registry import discover
from jax_interp.steering.trained.interventions.direft import DiReFT, DiReFTConfig
from jax_interp.steering.trained.interventions.loreft import LoReFT, LoReFTConfig
from jax_interp.steering.trained.interventions.noreft import NoReFT, NoReFTConfig
from jax_interp.steering.trained.interventions.rank_k import RankK, RankKConfig
from jax_interp.steering.trained.interventions.reft_r1 import ReFTr1, ReFTr1Config
from jax_interp.steering.trained.interventions.scaled_vector import ScaledVector, ScaledVectorConfig
from jax_interp.steering.trained.interventions.soft_prompt import SoftPrompt, SoftPromptConfig
from jax_interp.steering.trained.interventions.vector import Vector, VectorConfig

discover(__name__, __path__)

__all__ = [
    "DiReFT",
    "DiReFTConfig",
    "LoReFT",
    "LoReFTConfig",
    "NoReFT",
    "NoReFTConfig",
    "RankK",
    "RankKConfig",
    "ReFTr1",
    "ReFTr1Config",
    "ScaledVector",
    "ScaledVectorConfig",
    "SoftPrompt",
    "SoftPromptConfig",
    "Vector",
    "VectorConfig",
]
