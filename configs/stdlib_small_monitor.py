"""Monitors that look for fragments of code that end inside a string: a probe, a bag of words, and surprise.

    jax-interp monitor stdlib_small_monitor

Two CPU cores, about a minute.
"""

from jax_interp.probes import Logistic
from jax_interp.probes.token_rules import LAST
from jax_interp.recipes.probes.labelled_set import LabelledSet
from jax_interp.recipes.probes.monitor import MonitorConfig

CONFIG = MonitorConfig(
    data=LabelledSet(made="inside-strings", examples=800),
    control=LabelledSet(made="inside-strings", examples=600, only="code", seed=1, name="other code"),
    rule=LAST,
    kind=Logistic(C=(0.01,)),
)
