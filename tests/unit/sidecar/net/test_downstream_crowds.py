"""How many connections there may be from one address: who is one too many, and who is not."""

import pytest

from tests.harness.engine import End, ok
from tests.harness.wire import Client, Wire, get, post

MINE, YOURS, PROXY = "192.0.2.1", "192.0.2.2", "10.0.0.1"


def is_turned_away(client: Client) -> bool:
    if client.is_open:
        return False
    refusal = client.answer()
    assert (refusal.status, refusal.reason) == (503, "too_many_connections")
    assert refusal[b"connection"] == b"close"
    assert int(refusal[b"retry-after"]) >= 1
    return True


def test_one_address_has_its_share_and_no_more() -> None:
    wire = Wire("max_connections_per_client: 2")
    mine = [wire.client(MINE) for _ in range(4)]
    assert [is_turned_away(client) for client in mine] == [False, False, True, True]
    yours = [wire.client(YOURS) for _ in range(2)]
    for client in (*mine[:2], *yours):
        client >> get()
        wire.engine >> ok()
        assert client.answer().status == 200


def test_it_is_told_why() -> None:
    wire = Wire("max_connections_per_client: 1\nmax_connections: 2")
    wire.client(MINE)
    assert b"at most 1 for each address" in wire.client(MINE).answer().body
    wire.client(YOURS)
    assert b"try another pod" in wire.client(YOURS).answer().body


@pytest.mark.parametrize("end", End)
def test_a_place_is_free_again_when_its_connection_ends(end: End) -> None:
    wire = Wire("max_connections_per_client: 1")
    for _ in range(3):
        client = wire.client(MINE)
        refused = wire.client(MINE)
        client >> post() >> end
        assert is_turned_away(refused)
        refused >> end
    assert not is_turned_away(wire.client(MINE))
    wire.assert_at_rest()


def test_who_was_turned_away_held_no_place() -> None:
    wire = Wire("max_connections_per_client: 1\nmax_connections: 1")
    first = wire.client(YOURS)
    wire.client(MINE) >> End.CLOSE  # there is no room for anybody
    wire.client(YOURS) >> End.CLOSE  # nor for this one
    first >> End.CLOSE
    assert len(wire.context.places) == 0
    assert not is_turned_away(wire.client(MINE))


@pytest.mark.parametrize("peer", [PROXY, ""])
def test_a_proxy_carries_many_callers_and_a_unix_socket_has_no_address(peer: str) -> None:
    wire = Wire("max_connections_per_client: 1\ntrusted_proxies: [10.0.0.0/8]")
    clients = [wire.client(peer) for _ in range(5)]
    assert not any(is_turned_away(client) for client in clients)
    assert len(wire.context.places) == 0


def test_a_reload_counts_who_is_there() -> None:
    wire = Wire()
    clients = [wire.client(MINE) for _ in range(3)]
    wire.configure("max_connections_per_client: 2")
    assert is_turned_away(wire.client(MINE))
    assert all(client.is_open for client in clients), "who is here stays"
    clients[0] >> End.CLOSE
    assert is_turned_away(wire.client(MINE))
    clients[1] >> End.CLOSE
    assert not is_turned_away(wire.client(MINE))


def test_a_reload_that_trusts_an_address_gives_back_its_places_all_the_same() -> None:
    wire = Wire("max_connections_per_client: 1")
    before = wire.client(PROXY)
    wire.configure("max_connections_per_client: 1\ntrusted_proxies: [10.0.0.0/8]")
    during = wire.client(PROXY)
    wire.configure("max_connections_per_client: 1")
    for client in (before, during):
        client >> End.CLOSE
    assert len(wire.context.places) == 0


def test_a_crowd_leaves_no_memory_of_its_addresses() -> None:
    wire = Wire("max_connections_per_client: 5")
    for i in range(600):
        wire.client(f"192.0.2.{i % 200}")
    assert len(wire.context.places) == 200
    for client in list(wire.context.clients):
        client.abort()
    wire.settle()
    assert len(wire.context.places) == 0


def test_members_and_callers_do_not_keep_each_other_out() -> None:
    wire = Wire("max_connections: 2")
    members = [wire.client(is_mesh=True) for _ in range(3)]
    assert [is_turned_away(client) for client in members] == [False, False, True]
    callers = [wire.client() for _ in range(3)]
    assert [is_turned_away(client) for client in callers] == [False, False, True]
    for client in (*members, *callers):
        client >> End.RESET
    assert not is_turned_away(wire.client(is_mesh=True))
    assert not is_turned_away(wire.client())
