"""Trainers of dictionaries: on a stream of activations, from disk, or inside a model.

config.py            the configs of the trainers
initialise.py        new dictionaries and learners
learner.py           the state of a dictionary in training, its optimizer and its metrics
apply_gradient.py    the part of a training step that follows the gradient; all trainers share it
train.py             one dictionary, on a stream: `train_dictionary`
from_store.py        one dictionary, on activations on disk: `train_from_store`
gradient.py          the gradient of a dictionary, over all latents or only over those that take part
sweep.py             many dictionaries on one stream: `train_sweep`
cross_layer.py       dictionaries that write at several layers: `train_cross_layer`
end_to_end.py        dictionaries trained through the output of the model: `train_end_to_end`
joint.py             a model together with dictionaries: `train_joint`
spliced.py           dictionaries inside the forward pass of a model, in training
warm_start.py        continue training from trained dictionaries
normalisation.py     fold scales, norms and centres into weights
resampling.py        re-initialise dead latents
rescaling.py         scale up latents that an L1 has shrunk
"""
