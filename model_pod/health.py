"""grpc.health.v1 on its own port, in its own threads: "" and the model's name.

NOT_SERVING while the model loads and while the server stops. Check, Watch and List.
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


class _Servicer(HealthServicer):
    """grpcio's own, which has no List."""

    def __init__(self, names: tuple[str, ...]) -> None:
        # Watchers are served by callbacks, so two threads serve any number of them.
        super().__init__(experimental_thread_pool=ThreadPoolExecutor(2))
        self._names = names

    def List(self, request: health_pb2.HealthListRequest, context: grpc.ServicerContext):
        asked = {name: health_pb2.HealthCheckRequest(service=name) for name in self._names}
        return health_pb2.HealthListResponse(
            statuses={name: self.Check(one, context) for name, one in asked.items()}
        )


class Health:
    """The health of the server as others see it. Listens from the beginning."""

    def __init__(self, address: Address, model_name: str) -> None:
        self._names = ("", model_name)
        self._servicer = _Servicer(self._names)
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
