"""Defences against harmful answers, side by side: at the same false positive rate, and under the same attacks."""

from jax_interp.probes.monitors.defences.adapters import Adapters, merged
from jax_interp.probes.monitors.defences.compare import compare_defences
from jax_interp.probes.monitors.defences.defended import Alarm, Defended, Outcomes, outcomes
from jax_interp.probes.monitors.defences.examples import REQUEST, RESPONSE, DefenceData
from jax_interp.probes.monitors.defences.harmfulness_probe import harmfulness_probe
from jax_interp.probes.monitors.defences.latent_attack import Attacked, LatentAttack, attack, attack_all, mean_norm
from jax_interp.probes.monitors.defences.lora_head import LoRAHeadConfig, train_lora_head
from jax_interp.probes.monitors.defences.report import DefenceReport
from jax_interp.probes.monitors.defences.rerouting import ReroutingConfig, reroute
from jax_interp.probes.monitors.defences.toy_requests import request_data, requests_as_examples

__all__ = [
    "REQUEST",
    "RESPONSE",
    "Adapters",
    "Alarm",
    "Attacked",
    "DefenceData",
    "DefenceReport",
    "Defended",
    "LatentAttack",
    "LoRAHeadConfig",
    "Outcomes",
    "ReroutingConfig",
    "attack",
    "attack_all",
    "compare_defences",
    "harmfulness_probe",
    "mean_norm",
    "merged",
    "outcomes",
    "request_data",
    "requests_as_examples",
    "reroute",
    "train_lora_head",
]
