"""Monitors: scores over conversations, their combinations and cascades, and how they hold under attack."""

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
from jax_interp.probes.monitors.evaluate import MonitorOptions, evaluate_monitors
from jax_interp.probes.monitors.monitor import Cost, ModelMonitor, Monitor, forward_cost
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
    "COMBINATIONS", "AnswerMonitor", "BagOfWords", "Cascade", "CascadeCurve", "CascadeFigures", "Choice", "Combination",
    "Combined", "CombinedMonitor", "Cost", "Decisions", "FunctionMonitor", "LikelihoodRatio", "ModelMonitor", "Monitor",
    "MonitorFigures", "MonitorOptions", "MonitorReport", "ProbeMonitor", "RankMean", "Stacking", "Surprise",
    "Thresholds", "Uplift", "ZScoreMean", "answer_monitor", "bag_of_words", "cascade", "evaluate_monitors",
    "forward_cost", "probe_cost", "recall_difference", "search", "within_class_correlation",
]  # fmt: skip
