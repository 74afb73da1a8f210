"""What a probe must beat: the text alone, shuffled labels, and a network that was not trained."""

from jax_interp.probes.baselines.reset_network import reset
from jax_interp.probes.baselines.shuffled_labels import shuffled_within
from jax_interp.probes.baselines.text_alone import bag_of_words, length_alone, lengths

__all__ = ["bag_of_words", "length_alone", "lengths", "reset", "shuffled_within"]
