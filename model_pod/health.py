"""grpc.health.v1 on its own port, in its own threads: "" and the model's name.

NOT_SERVING while the model loads and while the server stops.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

if TYPE_CHECKING:
    from model_pod.config import Address

STATUS = health_pb2.HealthCheckResponse.ServingStatus


class Health:
    """The health of the server as others see it. Listens from the beginning."""

    def __init__(self, address: Address, model_name: str) -> None:
        self._names = ("", model_name)
        # Watchers are served by callbacks, so two threads serve any number of them.
        self._servicer = HealthServicer(experimental_thread_pool=ThreadPoolExecutor(2))
        self._server = grpc.server(ThreadPoolExecutor(2), options=(("grpc.so_reuseport", 0),))
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        self.set(serving=False)
        try:
            self.port = self._server.add_insecure_port(str(address))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
        self._server.start()

    def set(self, *, serving: bool) -> None:
        for name in self._names:
            self._servicer.set(name, STATUS.SERVING if serving else STATUS.NOT_SERVING)

    def stop(self) -> None:
        self._server.stop(grace=None).wait()
