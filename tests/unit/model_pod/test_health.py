"""grpc.health.v1 as a prober sees it."""

from __future__ import annotations

import socket
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from model_pod.config import Address
from model_pod.health import Health

SERVING, NOT_SERVING = 1, 2


def test_both_names_follow_the_server():
    health = Health(Address("127.0.0.1", 0), "m")
    try:
        with grpc.insecure_channel(f"127.0.0.1:{health.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            def check(service: str) -> int:
                return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status

            assert (check(""), check("m")) == (NOT_SERVING, NOT_SERVING)
            health.set(serving=True)
            assert (check(""), check("m")) == (SERVING, SERVING)
            health.set(serving=False)
            assert check("") == NOT_SERVING
            with pytest.raises(grpc.RpcError) as caught:
                check("other")
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    finally:
        health.close()


def test_a_port_in_use_is_an_error_that_names_it():
    health = Health(Address("127.0.0.1", 0), "m")
    try:
        with pytest.raises(OSError, match=f"127.0.0.1:{health.port}"):
            Health(Address("127.0.0.1", health.port), "m")
    finally:
        health.close()


@contextmanager
def served():
    """A health that serves, and its stub."""
    health = Health(Address("127.0.0.1", 0), "m")
    health.set(serving=True)
    # The reconnection of a client is not what is tested.
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]
    try:
        with grpc.insecure_channel(f"127.0.0.1:{health.port}", options) as channel:
            yield health, health_pb2_grpc.HealthStub(channel)
    finally:
        health.close()


def test_in_silence_nobody_is_answered_until_it_ends():
    with served() as (health, stub):
        health.silence(True)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(), timeout=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        # Also more of them than there are threads.
        asked = [stub.Check.future(health_pb2.HealthCheckRequest(), timeout=10) for _ in range(5)]
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert not any(each.done() for each in asked)
        health.silence(False)
        assert {each.result().status for each in asked} == {SERVING}
        assert next(watched).status == SERVING
        watched.cancel()


def test_silence_does_not_keep_it_from_ending():
    with served() as (health, stub):
        health.silence(True)
        asked = stub.Check.future(health_pb2.HealthCheckRequest(), timeout=10)
        health.close()
        with pytest.raises(grpc.RpcError):
            asked.result()


def test_closed_it_refuses_and_opened_it_serves_on_the_same_port():
    with served() as (health, stub):
        port = health.port
        for _ in range(2):
            health.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=10)
            health.open()
            assert health.port == port
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True)
            assert answer.status == SERVING
