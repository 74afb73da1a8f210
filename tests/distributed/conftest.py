"""A fixture that takes simulated devices for those of several hosts, which cannot read each other's arrays."""

from __future__ import annotations

import pytest

from tests.distributed.hosts_apart import hosts_apart


@pytest.fixture
def hosts_are_apart():
    with hosts_apart():
        yield
