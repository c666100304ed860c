"""Health checks over grpc.health.v1. Apart, because importing grpc takes 20 MB.

`Check` is asked at every interval, as Envoy asks: any answer but SERVING is a failure that was said. The
stream of `Watch`, kept as gRPC's own clients keep it (health-checking.md), tells of changes between these.
It is no proof of life, since a server that hangs says nothing either.

1. Each message counts at once: SERVING, or not; a status that is not known is not SERVING. SERVICE_UNKNOWN
   ends nothing: the name may appear.
2. A stream that ends, or brings no first message in time, is one failed connection. It is called again after
   a pause that grows until a message comes.
3. UNIMPLEMENTED: it is not called again, and `Check` alone decides.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.balance.health import Backoff, Check

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.clock import Clock
    from sidecar.values import Address


log = logging.getLogger("headgate.probe")

# Whatever else an engine answers, it answered, and it did not say that it serves (Envoy likewise).
_NO_ANSWER: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_JITTER: Final = 0.2


class GrpcProber:
    """Asks about `service`, the whole server if it is empty; with `watch` it also listens."""

    def __init__(
        self,
        address: Address,
        timeout_s: float,
        service: str = "",
        *,
        watch: bool = False,
        backoff: Backoff | None = None,
    ) -> None:
        # A connection that failed is tried again with the next check, not after gRPC's own back-off.
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
        self._address = address
        self._channel = grpc.aio.insecure_channel(str(address), options=options)
        self._stub = health_pb2_grpc.HealthStub(self._channel)
        self._request = health_pb2.HealthCheckRequest(service=service)
        self._timeout_s = timeout_s
        self._watch = watch
        self._backoff = backoff or Backoff()

    async def check(self) -> Check:
        try:
            return _meaning(await self._stub.Check(self._request, timeout=self._timeout_s))
        except grpc.aio.AioRpcError as error:
            return Check.UNREACHABLE if error.code() in _NO_ANSWER else Check.NOT_SERVING
        except Exception as error:  # an answer that cannot be read
            log.debug("the engine's health cannot be read: %r", error)
            return Check.NOT_SERVING

    async def follow(self, hear: Callable[[Check], None], clock: Clock) -> None:
        while self._watch:
            if await self._listen(hear) is grpc.StatusCode.UNIMPLEMENTED:
                log.info("engine %s has no Watch: its health is asked for at intervals alone", self._address)
                return
            hear(Check.UNREACHABLE)
            await asyncio.sleep(clock.jitter(self._backoff.pause_s(), _JITTER))

    async def _listen(self, hear: Callable[[Check], None]) -> grpc.StatusCode:
        """One stream, to its end: how it ended."""
        call = self._stub.Watch(self._request)
        try:
            async with asyncio.timeout(self._timeout_s) as patience:
                async for answer in call:
                    patience.reschedule(None)  # from here on silence means that nothing has changed
                    self._backoff.reset()
                    hear(_meaning(answer))
        except grpc.aio.AioRpcError as error:
            return error.code()
        except Exception as error:
            log.debug("the engine's health cannot be watched: %r", error)
            return grpc.StatusCode.UNKNOWN
        finally:
            call.cancel()
        return grpc.StatusCode.OK

    async def close(self) -> None:
        await self._channel.close()


def _meaning(answer: health_pb2.HealthCheckResponse) -> Check:
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return Check.SERVING if serving else Check.NOT_SERVING
