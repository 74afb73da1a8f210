"""How dictionaries are trained: in the step that harvests, or from disk.

config.py                       what is trained, where, for what and how long
train.py                        one dictionary: `learn` (rows in, learner out), the step, the loop, what is exported
gradient.py                     of a step, over all latents or over the few that take part
harvest.py, normalisation.py    the stream of shuffled activations and its scale
activation_store.py             the same rows from disk
resampling.py, rescaling.py     dead latents begin anew; latents that shrank are scaled back
sweep.py                        many dictionaries on one stream
cross_layer.py                  dictionaries that write at several layers
end_to_end.py, joint.py         for what the model makes of them; together with the model
warm_start.py                     trained ones that these two go on from
sharding.py                     on a mesh
"""
