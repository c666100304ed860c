"""Health checks over grpc.health.v1, against a real server on loopback."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sidecar.balance.health import Check
from sidecar.net.probe_grpc import GrpcProber
from sidecar.values import Address

Status = health_pb2.HealthCheckResponse


@pytest.mark.parametrize(
    ("status", "check"),
    [
        (Status.SERVING, Check.SERVING),
        (Status.NOT_SERVING, Check.NOT_SERVING),
        (Status.UNKNOWN, Check.NOT_SERVING),
        (None, Check.NOT_SERVING),  # it has no such service: it answered, and not that it serves
    ],
)
def test_a_check(status: int | None, check: Check) -> None:
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    servicer = health.HealthServicer()
    if status is not None:
        servicer.set("", status)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    async def main() -> tuple[Check, Check]:
        prober = GrpcProber(Address("127.0.0.1", port), 2.0)
        first = await prober.check()
        server.stop(grace=None).wait()
        return first, await prober.check()

    try:
        assert asyncio.run(main()) == (check, Check.UNREACHABLE)
    finally:
        server.stop(grace=None).wait()
