"""grpc.health.v1 as a prober sees it."""

from __future__ import annotations

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
            stream = stub.Watch(health_pb2.HealthCheckRequest(service="m"), timeout=10)
            assert next(stream).status == NOT_SERVING
            health.set(serving=True)
            assert next(stream).status == SERVING
            listed = stub.List(health_pb2.HealthListRequest(), timeout=10).statuses
            assert {name: said.status for name, said in listed.items()} == {"": SERVING, "m": SERVING}
            assert (check(""), check("m")) == (SERVING, SERVING)
            health.set(serving=False)
            assert check("") == NOT_SERVING
            assert next(stream).status == NOT_SERVING
            with pytest.raises(grpc.RpcError) as caught:
                check("other")
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    finally:
        health.stop()


def test_a_port_in_use_is_an_error_that_names_it():
    health = Health(Address("127.0.0.1", 0), "m")
    try:
        with pytest.raises(OSError, match=f"127.0.0.1:{health.port}"):
            Health(Address("127.0.0.1", health.port), "m")
    finally:
        health.stop()
