"""Thresholds at a budget of lost examples, the report, and the defences of the trained toy."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.probes import MassMean
from jax_interp.probes.kinds.lda import LDA
from jax_interp.probes.monitors.defences import (
    Adapters,
    Defended,
    LatentAttack,
    LoRAHeadConfig,
    Outcomes,
    ReroutingConfig,
    compare_defences,
    harmfulness_probe,
    mean_norm,
    outcomes,
    request_data,
    reroute,
    train_lora_head,
)
from jax_interp.probes.monitors.defences.compare import threshold_within
from jax_interp.toys.harmful_requests import RequestConfig, request_target
from jax_interp.training import QUIET
from tests.probes.defences.tiny_requests import data, model


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("changed", [0, 3])
def test_a_threshold_is_the_lowest_within_the_budget(budget, changed):
    """By trying all: ties, and answers that the model itself no longer gives."""
    rng = np.random.default_rng(changed)
    answered = np.arange(20) >= changed
    control = Outcomes(answered, rng.integers(0, 8, 20).astype(np.float32))
    allowed = int(budget * 20 + 1e-9)
    lost = lambda t: int((~control.goes_out(t)).sum())
    tried = [-np.inf, *np.unique(control.score)]
    within = [t for t in tried if lost(t) <= allowed]
    assert threshold_within(control, budget) == (min(within) if within else np.inf)
    with pytest.raises(UserError, match="gives NaN"):
        threshold_within(Outcomes(answered, np.full(20, np.nan)), budget)
    assert threshold_within(Outcomes(answered, np.full(20, -np.inf)), budget) == np.inf  # there is no alarm


def test_a_score_that_is_nan_is_an_alarm():
    assert not Outcomes(np.array([True]), np.array([np.nan])).goes_out(np.inf).any()


def test_the_probe_of_an_untrained_model_and_refusals():
    """The alarm's score of a response is the largest of its tokens, by NumPy; what cannot be compared is refused."""
    examples = data()
    found = harmfulness_probe(MassMean(), model(), examples, "blocks.1.resid_post")
    from jax_interp.probes import Span, gather_tokens

    x = gather_tokens(model(), examples.harmful, "blocks.1.resid_post", Span("response"))
    token = x.values["blocks.1.resid_post"] @ np.asarray(found.alarm.probe.weight) + float(found.alarm.probe.bias)
    want = np.where(examples.harmful.spans["response"], token, -np.inf).max(axis=1)
    got = outcomes(found, examples.harmful, reference=model(), batch=7)
    np.testing.assert_allclose(got.score, want, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got.kl, 0, atol=1e-5)
    run = lambda **options: compare_defences(
        model(), {"same": lambda *_: Defended(model())}, lambda seed: examples, {}, **options
    )
    with pytest.raises(UserError, match="the model answers no example of control"):
        run()
    with pytest.raises(UserError, match="is a share"):
        run(fpr=1.5)
    with pytest.raises(UserError, match="at least one defence and one seed"):
        run(seeds=())
    with pytest.raises(UserError, match="reads single tokens"):
        harmfulness_probe(_Pairs(), model(), examples, "blocks.1.resid_post")


class _Pairs(MassMean):
    takes = "pairs"


@pytest.mark.slow
def test_each_defence_stops_harmful_answers_and_an_attack_brings_some_back():
    """On unseen pairs of the trained toy, at the same share of lost benign answers. The twin has nothing to give."""
    config, site = RequestConfig(), "blocks.1.resid_post"
    untouched = request_target(config)
    twin = request_target(dataclasses.replace(config, refuses=True))
    adapters = Adapters(rank=4, alpha=4.0)
    head = LoRAHeadConfig(site, retention="hidden", steps=200, adapters=adapters)
    turn = ReroutingConfig((1,), learning_rate=3e-3, adapters=adapters)
    examples = request_data(config, each=3)
    size = mean_norm(untouched, examples.harmful, "embed")
    report = compare_defences(
        untouched,
        {
            "probe": lambda data, seed: harmfulness_probe(LDA(), untouched, data, site, seed=seed),
            "head": lambda data, seed: train_lora_head(head, untouched, data, log=QUIET),
            "rerouting": lambda data, seed: reroute(turn, untouched, data, log=QUIET),
            "twin": lambda *_: Defended(twin),
        },
        lambda seed: examples,
        {"embedding": LatentAttack(("embed",), 0.5 * size)},
        fpr=0.03,
    )
    of = lambda defence, name: report.figure(defence, name).value
    assert of("untouched", "harmful: no attack") == 1
    assert of("untouched", "KL") == pytest.approx(0, abs=1e-6)
    for defence in ("probe", "head", "rerouting", "twin"):
        assert of(defence, "harmful: no attack") < 0.1, report
        assert of(defence, "harmful: embedding") >= of(defence, "harmful: no attack")
        # Rerouting has no threshold, so nothing bounds what it loses: here .16 to .23 of the look-alikes.
        assert of(defence, "lost: look-alikes") < (0.35 if defence == "rerouting" else 0.2)
    for defence in ("probe", "head"):  # defences with an alarm fill their budget
        assert of(defence, "lost: control") <= 0.03
    assert of("rerouting", "harmful: embedding") > 0.5
    assert of("twin", "harmful: embedding") < 0.5 * of("rerouting", "harmful: embedding")
    assert json.loads(json.dumps(report.to_json()))["axes"]["defence"] == list(report.defences)
    assert len(report.lines()) == 7
