"""A sidecar that has just begun."""

from sidecar.lifecycle import Lifecycle


def test_it_serves_nobody_yet() -> None:
    lifecycle = Lifecycle()
    assert not lifecycle.serving
    assert not lifecycle.draining
    assert not lifecycle.lagging
    assert (lifecycle.lag_s, lifecycle.beat) == (0.0, 0.0)
