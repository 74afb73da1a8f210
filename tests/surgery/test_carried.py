"""Carried values: what one scoped edit makes and a later one uses, in every layout, with remat, vmap and grad."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import CarryError, Each, ScopedEdit, Splice, Zero, at, edit, grad_at, read, replan, sites
from tests.surgery.conftest import LAYOUTS
from tests.surgery.foreign import RecurrentNet

DEPTH, WIDTH = 5, 4
NET = RecurrentNet.of(DEPTH, WIDTH, jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (2, 3, WIDTH))
POLICIES = {"no remat": None, "remat": True, "remat by name": jax.checkpoint_policies.save_only_these_names("state")}


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Make(ScopedEdit):
    """Carries scale · value, and names it."""

    scale: jax.Array
    name: str = dataclasses.field(default="it", metadata={"static": True})

    def __call__(self, x, site):
        made = site("made", self.scale * x, "batch time feature")
        site.carry(self.name, {"value": made, "sum": made.sum(-1)})
        return x


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Use(ScopedEdit):
    """Adds weight · what is carried."""

    weight: jax.Array
    name: str = dataclasses.field(default="it", metadata={"static": True})

    def __call__(self, x, site):
        carried = site.carried(self.name)
        return x + self.weight * (carried["value"] + carried["sum"][..., None])


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Accumulate(ScopedEdit):
    """A running sum over layers: uses what it has made one layer below."""

    weight: jax.Array

    def __call__(self, x, site):
        total = site.carried("total") + self.weight * x
        site.carry("total", total)
        return x + jnp.sin(total)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Begin(ScopedEdit):
    def __call__(self, x, site):
        site.carry("total", jnp.zeros_like(x))
        return x


def by_hand(x, made_at=1, used_at=3, make=0.5, use=1.0):
    """The net with `Make` at the state of one layer and `Use` at the input of a later one, written out."""
    made = None
    for layer, block in enumerate(NET.blocks[0].unstack()):
        if layer == used_at:
            x = x + use * (made + made.sum(-1, keepdims=True))
        state, states = jnp.zeros((x.shape[0], WIDTH)), []
        for t in range(x.shape[1]):
            state = jnp.tanh(x[:, t] @ block.w_in + state @ block.w_state)
            states.append(state)
        state = jnp.stack(states, 1)
        made = make * state if layer == made_at else made
        x = x + state
    return x


def edits(make=0.5, use=1.0):
    return at("blocks.1.state", Make(jnp.asarray(make))), at("blocks.3.input", Use(jnp.asarray(use)))


@pytest.fixture(params=LAYOUTS, scope="module")
def net(request):
    layout = {"mixed": ["1:3"]}.get(request.param, LAYOUTS[request.param])
    return replan(NET, layout)


@pytest.mark.parametrize("remat", POLICIES)
def test_a_later_edit_gets_the_value_and_gradients_go_through_it(net, remat):
    def run(make, use, x):
        return edit(net, edits(make, use))(x, remat=POLICIES[remat])

    loss = lambda f: lambda *args: jnp.sum(jnp.sin(f(*args)))
    make, use = jnp.asarray(0.5), jnp.asarray(1.0)
    wanted = lambda make, use, x: by_hand(x, make=make, use=use)
    chex.assert_trees_all_close(jax.jit(run)(make, use, X), wanted(make, use, X), rtol=1e-5, atol=1e-5)
    grads, by = (jax.jit(jax.grad(loss(f), (0, 1, 2)))(make, use, X) for f in (run, wanted))
    chex.assert_trees_all_close(grads, by, rtol=1e-4, atol=1e-5)
    swept = jax.jit(jax.vmap(run, (0, None, None)))(jnp.array([0.0, 0.5, -1.0]), use, X)
    for i, make in enumerate((0.0, 0.5, -1.0)):
        chex.assert_trees_all_close(swept[i], by_hand(X, make=make), rtol=1e-5, atol=1e-5)
    rows = jax.jit(jax.vmap(lambda row: run(make=0.5, use=1.0, x=row[None])[0]))(X)
    chex.assert_trees_all_close(rows, by_hand(X), rtol=1e-5, atol=1e-5)


def test_values_named_by_the_edits_are_read_and_edited(net):
    surgery = edit(net, edits())
    out, acts = jax.jit(lambda f, x: f(x))(read(surgery, "blocks.1.state.made", "blocks.*.state"), X)
    chex.assert_trees_all_close(acts["blocks.1.state.made"], 0.5 * acts["blocks.1.state"])
    chex.assert_trees_all_close(out, by_hand(X), rtol=1e-5, atol=1e-5)
    off = edit(surgery, at("blocks.1.state.made", Zero()))
    chex.assert_trees_all_close(off(X), by_hand(X, make=0.0), rtol=1e-5, atol=1e-5)
    assert "blocks.1.state.made" in sites(surgery)(X)
    _, grads = grad_at(surgery, "blocks.1.state.made")(jnp.sum)(X)
    plain = jax.grad(lambda make: jnp.sum(by_hand(X, make=make)))(0.5)
    made = grads["blocks.1.state.made"] * acts["blocks.1.state"]
    chex.assert_trees_all_close(made.sum(), plain, rtol=1e-4)


@pytest.mark.parametrize("remat", POLICIES)
def test_a_value_that_every_layer_goes_on_with(net, remat):
    weights = jnp.linspace(-1.0, 1.0, DEPTH)

    def run(weights):
        surgery = edit(net, at("embed", Begin()), at("blocks.*.input", Each(Accumulate(weights))))
        return surgery(X, remat=POLICIES[remat])

    def wanted(weights):
        x, total = X, jnp.zeros_like(X)
        for layer, weight in enumerate(weights):
            total = total + weight * x
            x = edit(RecurrentNet([NET.blocks[0].unstack()[layer]]), at("embed", Add0(jnp.sin(total))))(x)
        return x

    chex.assert_trees_all_close(jax.jit(run)(weights), wanted(weights), rtol=1e-5, atol=1e-5)
    grads = [jax.jit(jax.jacobian(lambda w, f=f: f(w).sum()))(weights) for f in (run, wanted)]
    chex.assert_trees_all_close(*grads, rtol=1e-4, atol=1e-5)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Add0:
    value: jax.Array

    def __call__(self, x):
        return x + self.value


@pytest.mark.parametrize(
    ("making", "using", "says"),
    [
        ("blocks.3.state", "blocks.1.input", r"Use at 'blocks.1.input' uses the carried value 'it'"),
        ("blocks.1.state", "blocks.1.input", r"Use at 'blocks.1.input' uses the carried value 'it'"),
        ("blocks.*.state", "blocks.*.input", r"uses the carried value 'it'"),
        ("out", "blocks.1.input", r"no edit has made.*Made so far: none"),
        ("blocks.2.input", "embed", r"no edit has made"),
    ],
)
def test_a_value_used_before_it_is_made_is_an_error_with_a_name(net, making, using, says):
    surgery = edit(net, at(making, Make(jnp.ones(()))), at(using, Use(jnp.ones(()))))
    with pytest.raises(CarryError, match=says):
        jax.eval_shape(surgery, X)


def test_what_cannot_be_carried_is_refused(net):
    later = at("blocks.3.input", Use(jnp.ones(())))
    with pytest.raises(CarryError, match=r"with layer= cannot make the carried value 'it'"):
        jax.eval_shape(edit(net, at("blocks.state", Make(jnp.ones(())), layer=1), later), X)
    with pytest.raises(CarryError, match="keep one type"):
        jax.eval_shape(edit(net, at("embed", Begin()), at("blocks.1.input", Retype())), X)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Retype(ScopedEdit):
    def __call__(self, x, site):
        site.carry("total", x[0])
        return x


def test_at_a_later_place_in_the_body_of_the_layer_below(net):
    """Made at the end of a layer and used at the beginning of the next: in a scan the use comes first in the body."""
    surgery = edit(net, at("blocks.2.state", Make(jnp.asarray(0.5))), at("blocks.3.input", Use(jnp.asarray(1.0))))
    chex.assert_trees_all_close(jax.jit(surgery)(X), by_hand(X, made_at=2), rtol=1e-5, atol=1e-5)
    whole = edit(net, at("blocks.1:4.state", Make(jnp.asarray(0.5))), at("blocks.4.input", Use(jnp.asarray(1.0))))
    chex.assert_trees_all_close(jax.jit(whole)(X), by_hand(X, made_at=3, used_at=4), rtol=1e-5, atol=1e-5)


def test_a_scoped_edit_that_carries_nothing_adds_nothing_to_the_scan():
    """The scan returns the residual stream alone."""

    class Half:
        def encode(self, x):
            return 0.5 * x

        def decode(self, z):
            return z

    half = register_dataclass(dataclasses.dataclass(frozen=True)(Half))()
    equations = jax.make_jaxpr(edit(NET, at("blocks.2.input", Splice(half))))(X).eqns
    assert [len(one.outvars) for one in equations if one.params.get("length") == DEPTH] == [1]
