"""grpc.health.v1 on its own port, in its own threads: "" and the model's name.

NOT_SERVING while the model loads and while the server stops.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

if TYPE_CHECKING:
    from model_pod.config import Address

STATUS = health_pb2.HealthCheckResponse.ServingStatus


SILENCE_S = 0.1  # how late a check in silence notices that its caller has left


class Servicer(HealthServicer):
    """Answers, or keeps its callers waiting."""

    def __init__(self) -> None:
        # Watchers are served by callbacks, so two threads serve any number of them.
        super().__init__(experimental_thread_pool=ThreadPoolExecutor(2))
        self.speaks = Event()
        self.speaks.set()

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._wait(context)
        return super().Check(request, context)

    def Watch(self, request: Any, context: grpc.ServicerContext, send: Any = None) -> Any:
        self._wait(context)
        return super().Watch(request, context, send)

    def _wait(self, context: grpc.ServicerContext) -> None:
        while not self.speaks.wait(SILENCE_S) and context.is_active():
            pass


class Health:
    """The health of the server as others see it. Listens from the beginning."""

    def __init__(self, address: Address, model_name: str) -> None:
        self._names = ("", model_name)
        self._address = address
        self._servicer = Servicer()
        self.set(serving=False)
        self.open()

    @property
    def port(self) -> int:
        return self._address.port

    def open(self) -> None:
        """Listen; after `close`, on the same port again. Raises OSError."""
        self._server = grpc.server(ThreadPoolExecutor(2), options=(("grpc.so_reuseport", 0),))
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        try:
            port = self._server.add_insecure_port(str(self._address))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}") from error
        self._address = self._address._replace(port=port)
        self._server.start()

    def close(self) -> None:
        """Refuse connections, and end those that are open."""
        self._server.stop(grace=None).wait()

    def silence(self, silent: bool) -> None:
        """While `silent`, whoever asks gets nothing."""
        if silent:
            self._servicer.speaks.clear()
        else:
            self._servicer.speaks.set()

    def set(self, *, serving: bool) -> None:
        for name in self._names:
            self._servicer.set(name, STATUS.SERVING if serving else STATUS.NOT_SERVING)

