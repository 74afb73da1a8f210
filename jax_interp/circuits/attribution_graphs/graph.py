"""`AttributionGraph`: the nodes of one prompt and the direct effect of each on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jax_interp.circuits.attribution_graphs.clean_run import ActiveFeatures
from jax_interp.circuits.attribution_graphs.nodes import Error, Feature, Logit, Node, Token
from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class AttributionGraph:
    """The nodes of one prompt and their edges.

    Nodes are numbered in the order of circuit-tracer: features, errors [layer, pos], tokens, logits. Only features and
    logits have incoming edges, and logits have no outgoing ones, so `weights` has no rows and columns for the others.

    Attributes:
      tokens: the token ids of the prompt.
      active: all features that are active on the prompt.
      selected: the features that are nodes, as indices into `active`, in increasing order.
      weights: the edges. An edge is what the target's pre-activation (of a logit: the logit minus the mean logit) loses
        if the source is removed and nothing else responds.
      values: for each target its pre-activation or centred logit.
      biases: for each target the part of `values` that comes from no active feature, error or token: biases of the
        model and the dictionary, learned positions, and outputs at positions without nodes.
      logit_tokens: the token ids of the logits.
      logit_probabilities: their probabilities.
      n_layers: the number of layers with a dictionary.
      n_vocab: the number of token ids of the model.
      without_nodes: the positions without features and errors.
      texts: the text of each token of the prompt; None if it is not known.
      logit_texts: the text of each logit's token.
    """

    tokens: Int[np.ndarray, " pos"]
    active: ActiveFeatures
    selected: Int[np.ndarray, " feature"]
    weights: Float[np.ndarray, "target source"]
    values: Float[np.ndarray, " target"]
    biases: Float[np.ndarray, " target"]
    logit_tokens: Int[np.ndarray, " logit"]
    logit_probabilities: Float[np.ndarray, " logit"]
    n_layers: int
    n_vocab: int
    without_nodes: tuple[int, ...] = ()
    texts: tuple[str, ...] | None = None
    logit_texts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        targets = len(self.selected) + len(self.logit_tokens)
        sources = len(self.selected) + (self.n_layers + 1) * len(self.tokens)
        if self.weights.shape != (targets, sources) or self.values.shape != (targets,):
            raise UserError(f"a graph of {targets} targets and {sources} sources has edges of {self.weights.shape}")

    @property
    def n_features(self) -> int:
        """The number of features that are nodes."""
        return len(self.selected)

    @property
    def n_nodes(self) -> int:
        return self.weights.shape[1] + len(self.logit_tokens)

    @property
    def error_nodes(self) -> slice:
        """The numbers of the error nodes."""
        return slice(self.n_features, self.n_features + self.n_layers * len(self.tokens))

    @property
    def token_nodes(self) -> slice:
        """The numbers of the token nodes."""
        return slice(self.error_nodes.stop, self.error_nodes.stop + len(self.tokens))

    @property
    def logit_nodes(self) -> slice:
        """The numbers of the logit nodes."""
        return slice(self.token_nodes.stop, self.n_nodes)

    @property
    def layer(self) -> Int[np.ndarray, " feature"]:
        """The layer of each feature node."""
        return self.active.layer[self.selected]

    @property
    def activation(self) -> Float[np.ndarray, " feature"]:
        """The activation of each feature node."""
        return self.active.activation[self.selected]

    def node(self, number: int) -> Node:
        """The node of a number. Raises `UserError` if there is none."""
        if not 0 <= number < self.n_nodes:
            raise UserError(f"there is no node {number}: the graph has {self.n_nodes} nodes")
        if number < self.n_features:
            i = self.selected[number]
            return Feature(int(self.active.layer[i]), int(self.active.pos[i]), int(self.active.feature[i]))
        if number < self.error_nodes.stop:
            return Error(*divmod(number - self.n_features, len(self.tokens)))
        if number < self.token_nodes.stop:
            return Token(number - self.token_nodes.start)
        return Logit(int(self.logit_tokens[number - self.logit_nodes.start]))

    @property
    def targets(self) -> list[Feature | Logit]:
        """The nodes of the rows of `weights`."""
        return [self.node(i) for i in (*range(self.n_features), *range(self.logit_nodes.start, self.n_nodes))]  # type: ignore[misc]

    @property
    def sources(self) -> list[Feature | Error | Token]:
        """The nodes of the columns of `weights`."""
        return [self.node(i) for i in range(self.logit_nodes.start)]  # type: ignore[misc]

    def number(self, node: Node) -> int:
        """The number of a node. Raises `UserError` if it is no node of this graph."""
        n_pos, found = len(self.tokens), None
        if isinstance(node, Feature):
            active = self.active.find(node.layer, node.pos, node.feature)
            i = int(np.searchsorted(self.selected, active))
            found = i if i < self.n_features and self.selected[i] == active else None
        elif isinstance(node, Error) and 0 <= node.layer < self.n_layers and 0 <= node.pos < n_pos:
            found = self.n_features + node.layer * n_pos + node.pos
        elif isinstance(node, Token) and 0 <= node.pos < n_pos:
            found = self.token_nodes.start + node.pos
        elif isinstance(node, Logit) and node.token in self.logit_tokens:
            found = self.logit_nodes.start + int(np.flatnonzero(self.logit_tokens == node.token)[0])
        if found is None:
            raise UserError(f"{node} is no node of this graph of {self.n_nodes} nodes")
        return found

    def edge(self, source: Node, target: Node) -> float:
        """The weight of the edge from `source` to `target`; 0 if there is none."""
        i, j = self.number(target), self.number(source)
        row = self.target_row(i)
        return 0.0 if row is None or j >= self.weights.shape[1] else float(self.weights[row, j])

    def target_row(self, number: int) -> int | None:
        """The row of `weights` of a node; None for errors and tokens, which have no incoming edges."""
        if number < self.n_features:
            return number
        return number - self.logit_nodes.start + self.n_features if number >= self.logit_nodes.start else None

    def adjacency(self) -> Float[np.ndarray, "node node"]:
        """The edges as a square matrix [target, source] over all nodes, as circuit-tracer stores them."""
        square = np.zeros((self.n_nodes, self.n_nodes), self.weights.dtype)
        square[: self.n_features, : self.weights.shape[1]] = self.weights[: self.n_features]
        square[self.logit_nodes, : self.weights.shape[1]] = self.weights[self.n_features :]
        return square

    def with_texts(self, texts: Sequence[str], logit_texts: Sequence[str]) -> AttributionGraph:
        """The graph with the texts of its tokens, for files and pages."""
        if len(texts) != len(self.tokens) or len(logit_texts) != len(self.logit_tokens):
            raise UserError(f"{len(texts)} texts for {len(self.tokens)} tokens: give one for each")
        return dataclasses.replace(self, texts=tuple(texts), logit_texts=tuple(logit_texts))
