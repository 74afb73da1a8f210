"""The pages on single features run as they stand, and come out as they say."""

from __future__ import annotations

import pages
import pytest


def test_interpreting_features():
    names = pages.run("interpreting-features.md")
    detection, balanced = names["found"].measures()[:2]
    assert detection.estimates["dictionary"].value == balanced.estimates["dictionary"].value == 1
    assert 0.5 < balanced.estimates["random"].value < 1
    assert abs(names["wrong"].figures["detection"].balanced.value - 0.5) < 0.15


def test_feature_evolution():
    names = pages.run("feature-evolution.md")
    assert len(names["evolution"].lineages) == 5
    assert [names["names"][1][i] for i in names["step"].deaths] == ["d"]
    assert [names["names"][2][i] for i in names["step"].births] == ["e"]
    assert names["evolution"].persistence() == [1, 1, 0.75]
    assert [step.chance.value for step in names["layers"].steps] == pytest.approx([0, 0], abs=0.05)


@pytest.mark.slow
def test_multi_dimensional_features():
    names = pages.run("multi-dimensional-features.md")
    assert names["best"].features == tuple(range(12))
    assert names["best"].score > max(names["ranking"].chance)
    effects = names["effects"]
    assert effects["circle"].accuracy == effects["whole value"].accuracy == 1
    assert effects["mean"].accuracy < 0.5


@pytest.mark.slow
def test_disentangling_attributes():
    names = pages.run("disentangling-attributes.md")
    figures = {one.name: one.estimates for one in names["result"].measures()}
    assert figures["disentangle (mask)"]["dictionary"].value == 1
    assert figures["disentangle (mask)"]["full vector"].value < 0.75
