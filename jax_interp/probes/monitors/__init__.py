"""Monitors: scores over conversations, their combinations and cascades, and how they hold under attack."""

from jax_interp.probes.monitors.attack_slots import with_slots
from jax_interp.probes.monitors.attacks import (
    ATTACKS,
    Attack,
    Attacked,
    EmbeddingAttack,
    GreedyCoordinate,
    RandomTokens,
    attack,
    token_table,
)
from jax_interp.probes.monitors.cascade import Cascade, CascadeFigures, Decisions, cascade
from jax_interp.probes.monitors.combining import (
    COMBINATIONS,
    Combination,
    Combined,
    CombinedMonitor,
    LikelihoodRatio,
    RankMean,
    Stacking,
    ZScoreMean,
    within_class_correlation,
)
from jax_interp.probes.monitors.control import ControlFigures, ControlOptions, ControlReport, control_evaluation
from jax_interp.probes.monitors.evaluate import MonitorOptions, evaluate_monitors
from jax_interp.probes.monitors.monitor import Cost, ModelMonitor, Monitor, forward_cost
from jax_interp.probes.monitors.pool import pool_outcomes
from jax_interp.probes.monitors.probe_monitor import ProbeMonitor, probe_cost
from jax_interp.probes.monitors.report import CascadeCurve, MonitorFigures, MonitorReport
from jax_interp.probes.monitors.text_monitors import (
    AnswerMonitor,
    BagOfWords,
    FunctionMonitor,
    Surprise,
    answer_monitor,
    bag_of_words,
)
from jax_interp.probes.monitors.thresholds import Choice, Thresholds, search
from jax_interp.probes.monitors.uplift import Uplift, recall_difference

__all__ = [
    "ATTACKS",
    "COMBINATIONS",
    "AnswerMonitor",
    "Attack",
    "Attacked",
    "BagOfWords",
    "Cascade",
    "CascadeCurve",
    "CascadeFigures",
    "Choice",
    "Combination",
    "Combined",
    "CombinedMonitor",
    "ControlFigures",
    "ControlOptions",
    "ControlReport",
    "Cost",
    "Decisions",
    "EmbeddingAttack",
    "FunctionMonitor",
    "GreedyCoordinate",
    "LikelihoodRatio",
    "ModelMonitor",
    "Monitor",
    "MonitorFigures",
    "MonitorOptions",
    "MonitorReport",
    "ProbeMonitor",
    "RandomTokens",
    "RankMean",
    "Stacking",
    "Surprise",
    "Thresholds",
    "Uplift",
    "ZScoreMean",
    "answer_monitor",
    "attack",
    "bag_of_words",
    "cascade",
    "control_evaluation",
    "evaluate_monitors",
    "forward_cost",
    "pool_outcomes",
    "probe_cost",
    "recall_difference",
    "search",
    "token_table",
    "with_slots",
    "within_class_correlation",
]
