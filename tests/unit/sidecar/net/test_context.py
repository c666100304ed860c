"""What a reload replaces, and what it leaves."""

from tests.harness.wire import Wire


def test_a_reload_replaces_the_rules_and_keeps_what_runs() -> None:
    wire = Wire()
    context, client = wire.context, wire.client()
    kept = context.clients, context.connections, context.timers
    before = context.pipeline
    wire.configure(
        "max_connections: 3\ntimeouts: {stall_s: 7}\n"
        "trusted_proxies: [10.0.0.0/8]\nadmission: {overload_status: 529}"
    )
    assert (context.max_connections, context.overload_status) == (3, 529)
    assert context.pipeline is not before
    assert context.timeouts.stall_s == 7
    assert context.trust.covers("10.1.1.1")
    assert (context.clients, context.connections, context.timers) == kept
    assert client.downstream in context.clients
