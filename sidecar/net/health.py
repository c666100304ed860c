"""grpc.health.v1 of this pod: what Envoy, the kubelet and gRPC clients ask before they send work.

Services: "" is this pod, "engine" the model server in it. A name nobody set is NOT_FOUND in Check and
SERVICE_UNKNOWN in Watch, whose stream stays open and hears when the name appears.
After `drain` everything is NOT_SERVING and stays so.

grpcio answers on threads of its own, so that the event loop's state does not matter. Watch streams
hold no thread (`experimental_non_blocking`): any number of watchers leaves Check its threads.
Importing grpc costs tens of milliseconds and megabytes: only a pod that sets `health_listen` pays.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sidecar.values import Address

POD: Final = ""
ENGINE: Final = "engine"
_ASK_EVERY_S: Final = 0.25

log = logging.getLogger("headgate.health")

_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # two sidecars on one port are a mistake, not a pool
    ("grpc.max_receive_message_length", 4096),
    ("grpc.max_concurrent_streams", 1000),
)


class HealthServer:
    """Serves at `address`, which may have port 0, what each of `services` answers when asked.

    They are asked every quarter of a second from a thread of its own, so that a stuck event loop is
    noticed too. Everything is NOT_SERVING until `start`.
    """

    def __init__(self, address: Address, services: Mapping[str, Callable[[], bool]]) -> None:
        self._address = address
        self._services = services
        self._servicer = health.HealthServicer(experimental_non_blocking=True)
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=2, thread_name_prefix="health"), options=_OPTIONS
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        self._told: dict[str, bool] = {}
        self._telling = threading.Lock()
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
        threading.Thread(target=self._watch, name="health-watch", daemon=True).start()

    def refresh(self) -> None:
        """Ask now. Watchers hear of changes, and of nothing else."""
        statuses = health_pb2.HealthCheckResponse
        with self._telling:
            for name, ask in self._services.items():
                serving = ask()
                # The servicer tells its watchers whatever is set, again and again.
                if self._told.get(name) != serving:
                    self._told[name] = serving
                    self._servicer.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)

    def drain(self) -> None:
        """NOT_SERVING for all, and deaf to what is set afterwards. Safe to call twice."""
        self._servicer.enter_graceful_shutdown()

    def stop(self) -> None:
        """Close the listener; watchers see their streams cancelled. Safe to call twice."""
        self._stopped.set()
        self._server.stop(grace=None).wait(5)

    def _watch(self) -> None:
        while not self._stopped.wait(_ASK_EVERY_S):
            try:
                self.refresh()
            except Exception:  # once is no reason never to ask again
                log.exception("a service could not say how it is")
