"""What does stdlib-small know at the end of a fragment of code: is it inside a string?

    jax-interp train-probes stdlib_small_probes

The probes read the last token of 400 fragments of Python's standard library, at each layer. The page says what stands
beside them: the words alone, a reset network, shuffled labels, other sets, and whether the model uses the direction.
"""

from jax_interp.probes import Logistic, MassMean
from jax_interp.recipes.probes.causes import AnswerTokens
from jax_interp.recipes.probes.labelled_set import LabelledSet
from jax_interp.recipes.probes.train_probes import TrainProbesConfig

CONFIG = TrainProbesConfig(
    data=LabelledSet(made="inside-strings", examples=400),
    control=LabelledSet(made="inside-strings", examples=1000, only="code", seed=1, name="other code"),
    kinds=(Logistic(C=(0.001, 0.01, 0.1)), MassMean()),
    answers=AnswerTokens(positive=("'", '"', " %", "}", "]"), negative=(" =", ",", "(", ")")),
)
