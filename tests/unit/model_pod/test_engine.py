"""The protocol is kept by the engine that runs everywhere."""

from __future__ import annotations

import inspect

import pytest

from model_pod.engine import Engine
from model_pod.fake_engine import FakeEngine

METHODS = [name for name, member in vars(Engine).items() if inspect.isfunction(member) and name[0] != "_"]


@pytest.mark.parametrize("name", METHODS)
def test_the_fake_engine_has_every_method_as_it_is_declared(name):
    declared, built = getattr(Engine, name), getattr(FakeEngine, name)
    assert list(inspect.signature(built).parameters) == list(inspect.signature(declared).parameters)
    assert inspect.iscoroutinefunction(built) == inspect.iscoroutinefunction(declared)


def test_the_protocol_has_methods():
    assert {"submit", "cancel", "start", "stop"} <= set(METHODS)
