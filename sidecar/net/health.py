"""grpc.health.v1 of this pod: what Envoy, the kubelet and gRPC clients ask before they send work.

1. Check answers what is so now; a name that is not there is NOT_FOUND. List has all names, and beyond a
   hundred it is RESOURCE_EXHAUSTED, as gRPC's own servers.
2. Watch says at once how the service is, and later only what has changed, the newest if several changes came.
   A name that is not there is SERVICE_UNKNOWN: the stream stays open and hears when it appears, or goes.
3. After `drain` everything is NOT_SERVING and stays so; `stop` ends the streams with CANCELLED.

grpcio answers on threads of its own, so that the event loop's state does not matter. Watch streams hold
no thread (`experimental_non_blocking`), one teller serves all of them: who does not read its stream takes
nothing from Check, and from other watchers a few seconds until it is cut.
Importing grpc costs tens of milliseconds and megabytes: only a pod that sets `health_listen` pays.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.values import Address

_SERVING: Final = 1
_NOT_SERVING: Final = 2
_SERVICE_UNKNOWN: Final = 3  # in Watch alone
_ASK_EVERY_S: Final = 0.25
_LOOKS: Final = 8  # at a watcher that takes no message, before it is cut
_MOST_LISTED: Final = 100
_MOST_WATCHERS: Final = 1000
_LAST_MESSAGES_S: Final = 1.0

log = logging.getLogger("headgate.health")

_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # two sidecars on one port are a mistake, not a pool
    ("grpc.max_receive_message_length", 4096),
    ("grpc.max_concurrent_streams", 1000),
)

class _Watcher:
    """One stream of Watch, and what it was told last."""

    __slots__ = ("context", "send", "service", "told")

    def __init__(
        self,
        service: str,
        context: grpc.ServicerContext,
        send: Callable[[health_pb2.HealthCheckResponse | None], None],
    ) -> None:
        self.service = service
        self.context = context
        self.send = send
        self.told: int | None = None


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated, without types
    """What is said of each service, and who is to be told."""

    def __init__(self) -> None:
        self.said: Mapping[str, int] = {}  # replaced, never changed: read without a lock
        self.sending: _Watcher | None = None
        self._lock = threading.Lock()
        self._final = self._ended = False
        self._watchers: set[_Watcher] = set()
        self._news = threading.Event()

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        status = self.said.get(request.service)
        if status is not None:
            return _response(status)
        context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        raise AssertionError("it raises")

    def List(
        self, request: health_pb2.HealthListRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthListResponse:
        said = self.said
        if len(said) > _MOST_LISTED:
            why = f"there are {len(said)} services, and a list has at most {_MOST_LISTED}"
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, why)
        statuses = {name: _response(status) for name, status in said.items()}
        response: health_pb2.HealthListResponse = health_pb2.HealthListResponse(statuses=statuses)
        return response

    def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Callable[[health_pb2.HealthCheckResponse | None], None],
    ) -> None:
        watcher = _Watcher(request.service, context, send_response_callback)
        with self._lock:
            welcome = not self._ended and len(self._watchers) < _MOST_WATCHERS
            if welcome:
                self._watchers.add(watcher)
        if not welcome:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "there are too many watchers")
        if not context.add_callback(partial(self._forget, watcher)):
            self._forget(watcher)
        self._news.set()

    # Read by grpcio: the call ends with its status, not with this function.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def say(self, serving: Mapping[str, bool]) -> None:
        """How all services are from now on, unless what was said is final."""
        said = {name: _SERVING if well else _NOT_SERVING for name, well in serving.items()}
        with self._lock:
            if self._final or said == self.said:
                return
            self.said = said
        self._news.set()

    def close(self) -> None:
        """Nothing serves any more, for good."""
        with self._lock:
            self._final = True
            self.said = dict.fromkeys(self.said, _NOT_SERVING)
        self._news.set()

    def end(self) -> None:
        """No more streams."""
        with self._lock:
            self._ended = True
            watchers = tuple(self._watchers)
        for watcher in watchers:
            watcher.context.set_code(grpc.StatusCode.CANCELLED)
            watcher.context.set_details("this pod stops")
            watcher.send(None)
        self._news.set()

    def tell(self) -> None:
        """Tell watchers, until the end. A message that its reader does not take holds this up."""
        while not self._ended:
            self._news.wait()
            self._news.clear()
            with self._lock:
                watchers = tuple(self._watchers)
            for watcher in watchers:
                status = self.said.get(watcher.service, _SERVICE_UNKNOWN)
                if status != watcher.told:
                    watcher.told = status
                    self._send(watcher, status)

    def _send(self, watcher: _Watcher, status: int) -> None:
        self.sending = watcher
        try:
            watcher.send(_response(status))
        except Exception:  # one watcher's trouble is not the others'
            log.exception("a watcher could not be told")
        self.sending = None

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)


def _response(status: int) -> health_pb2.HealthCheckResponse:
    response: health_pb2.HealthCheckResponse = health_pb2.HealthCheckResponse(status=status)
    return response


class HealthServer:
    """Serves at `address`, which may have port 0, what `ask` says of each service.

    It is asked every quarter of a second from a thread of its own, so that a stuck event loop is
    noticed too.
    """

    def __init__(self, address: Address, ask: Callable[[], Mapping[str, bool]]) -> None:
        self._address = address
        self._ask = ask
        self._servicer = _Servicer()
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=2, thread_name_prefix="health"), options=_OPTIONS
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        self._stopped = threading.Event()
        self.port = 0

    def start(self) -> None:
        """Raises OSError when the address cannot be listened on."""
        try:
            self.port = self._server.add_insecure_port(str(self._address))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}") from error
        self.refresh()
        self._server.start()
        for name, run in (("health-ask", self._run), ("health-tell", self._servicer.tell)):
            threading.Thread(target=run, name=name, daemon=True).start()

    def refresh(self) -> None:
        """Ask now. Watchers hear of changes, and of nothing else."""
        self._servicer.say(self._ask())

    def drain(self) -> None:
        """NOT_SERVING for all, whatever is said afterwards. Safe to call twice; waits for nobody."""
        self._servicer.close()

    def stop(self) -> None:
        """Close the listener; watchers see their streams cancelled. Safe to call twice."""
        self._stopped.set()
        self._servicer.end()
        self._server.stop(grace=_LAST_MESSAGES_S).wait(5)

    def _run(self) -> None:
        seen, looks = None, 0
        while not self._stopped.wait(_ASK_EVERY_S):
            try:
                self.refresh()
            except Exception:  # once is no reason never to ask again
                log.exception("the services could not be asked how they are")
            sending = self._servicer.sending
            looks = looks + 1 if sending is seen else 0
            seen = sending
            if sending is not None and looks >= _LOOKS:
                log.debug("a watcher does not read")
                sending.context.cancel()
