"""How dictionaries are trained: on a stream of activations, from disk, or inside a model.

config.py            what is trained, where, for what and how long
initialise.py        fresh dictionaries and learners
learner.py           the state of one dictionary in training, its optimizer and its metrics
apply_gradient.py    a step after its gradient is known, the same for every trainer
train.py             one dictionary, on a stream or from disk: `train_dictionary`, `train_from_store`
gradient.py          its gradient, over all latents or over those that take part
sweep.py             many dictionaries on one stream: `train_sweep`
cross_layer.py       dictionaries that write at several layers: `train_cross_layer`
end_to_end.py        dictionaries for the output of the model that runs on them: `train_end_to_end`
joint.py             a model and dictionaries together: `train_joint`
spliced.py           dictionaries inside a model's forward pass
warm_start.py        training that goes on from trained dictionaries
normalisation.py     scales, norms and centres folded into weights
resampling.py        dead latents begin anew
rescaling.py         latents that an L1 has shrunk are scaled back
"""
