"""Attribution graphs: the direct effects of features, errors and tokens on features and logits of one prompt."""

from jax_interp.circuits.attribution_graphs.attribute import Limits, attribution_graph
from jax_interp.circuits.attribution_graphs.clean_run import ActiveFeatures
from jax_interp.circuits.attribution_graphs.graph import AttributionGraph
from jax_interp.circuits.attribution_graphs.influence import Pruned, Scores, node_influence, prune, scores
from jax_interp.circuits.attribution_graphs.interventions import Change, Effect, changed_model, intervene, scaled
from jax_interp.circuits.attribution_graphs.nodes import Error, Feature, Logit, Node, Token

__all__ = [
    "ActiveFeatures", "AttributionGraph", "Change", "Effect", "Error", "Feature", "Limits", "Logit", "Node", "Pruned",
    "Scores", "Token", "attribution_graph", "changed_model", "intervene", "node_influence", "prune", "scaled", "scores",
]  # fmt: skip
