"""grpc.health.v1 of this pod: what Envoy, the kubelet and gRPC clients ask before they send work.

Services: "" is this pod, "engine" the model server in it. A name nobody set is NOT_FOUND in Check and
SERVICE_UNKNOWN in Watch, whose stream stays open and hears when the name appears.
After `drain` everything is NOT_SERVING and stays so.

grpcio answers on threads of its own, so that the event loop's state does not matter. Watch streams
hold no thread (`experimental_non_blocking`): any number of watchers leaves Check its threads.
Importing grpc costs tens of milliseconds and megabytes: only a pod that sets `health_listen` pays.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sidecar.settings import Address

POD: Final = ""
ENGINE: Final = "engine"

_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # two sidecars on one port are a mistake, not a pool
    ("grpc.max_receive_message_length", 4096),
    ("grpc.max_concurrent_streams", 1000),
)


class HealthServer:
    """Serves the health of the pod at `address`, which may have port 0. NOT_SERVING until told."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._servicer = health.HealthServicer(experimental_non_blocking=True)
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=2, thread_name_prefix="health"), options=_OPTIONS
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        self._told: dict[str, bool] = {}
        self.port = 0
        self.set(False)

    def start(self) -> None:
        """Raises OSError when the address cannot be listened on."""
        try:
            self.port = self._server.add_insecure_port(str(self._address))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}") from error
        self._server.start()

    def set(self, serving: bool) -> None:
        """The state of the pod and of its engine."""
        self.set_service(POD, serving)
        self.set_service(ENGINE, serving)

    def set_service(self, name: str, serving: bool) -> None:
        """The state of one service. Watchers hear of changes, and of nothing else."""
        # The servicer tells its watchers whatever is set, again and again.
        if self._told.get(name) == serving:
            return
        self._told[name] = serving
        statuses = health_pb2.HealthCheckResponse
        self._servicer.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)

    def drain(self) -> None:
        """NOT_SERVING for all, and deaf to what is set afterwards. Safe to call twice."""
        self._servicer.enter_graceful_shutdown()

    def stop(self) -> None:
        """Close the listener; watchers see their streams cancelled. Safe to call twice."""
        self._server.stop(grace=None).wait(5)
