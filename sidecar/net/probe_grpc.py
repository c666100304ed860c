"""Health checks over grpc.health.v1. Apart, because importing grpc takes 20 MB."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.balance.health import Check

if TYPE_CHECKING:
    from sidecar.values import Address


log = logging.getLogger("headgate.probe")

# Whatever else an engine answers, it answered, and it did not say that it serves (Envoy likewise).
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class GrpcProber:
    """`Check` of the whole server."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        # A connection that failed is tried again with the next check, not after gRPC's own back-off.
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
        self._channel = grpc.aio.insecure_channel(str(address), options=options)
        self._stub = health_pb2_grpc.HealthStub(self._channel)
        self._timeout_s = timeout_s

    async def check(self) -> Check:
        try:
            answer = await self._stub.Check(health_pb2.HealthCheckRequest(), timeout=self._timeout_s)
            serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        except grpc.aio.AioRpcError as error:
            return Check.UNREACHABLE if error.code() in _NO_ANSWER else Check.NOT_SERVING
        except Exception as error:  # an answer that is none
            log.debug("the engine's health cannot be read: %r", error)
            return Check.UNREACHABLE
        return Check.SERVING if serving else Check.NOT_SERVING

    async def close(self) -> None:
        await self._channel.close()
