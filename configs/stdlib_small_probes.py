"""What does stdlib-small know at the end of a fragment of code: is it inside a string?

    jax-interp train-probes stdlib_small_probes

The probes read the last token of 400 fragments of Python's standard library, at each layer. The page says what stands
beside them: the words alone, a reset network, shuffled labels, and whether the model uses the direction.

Two CPU cores, one to two minutes. With the library of Python 3.11, on held-out modules: AUROC .965 [.924, 1.000] for
logistic regression at layer 3, .674 for a bag of words, .670 for the reset network. A move along its direction makes
.43 and .33 of the difference between the classes; the controls make up to .26 and .10 of it.
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
