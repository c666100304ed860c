"""Servers of grpc.health.v1 that do as they are told, also what the protocol forbids."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

HOST = "127.0.0.1"
SERVICE = "grpc.health.v1.Health"

Call = Callable[[str, grpc.ServicerContext], Any]


def said(status: int) -> bytes:
    """A response of this status, of which the protocol need not know."""
    return bytes([8, status])


@contextlib.contextmanager
def health_server(check: Call | None = None, watch: Call | None = None, *, port: int = 0) -> Iterator[int]:
    """Its port. `check` gives an answer's bytes for a service's name, `watch` yields some; None: without."""

    def service(data: bytes) -> str:
        return str(health_pb2.HealthCheckRequest.FromString(data).service)

    handlers = {}
    if check is not None:
        handlers["Check"] = grpc.unary_unary_rpc_method_handler(check, service)
    if watch is not None:
        handlers["Watch"] = grpc.unary_stream_rpc_method_handler(watch, service)
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(grace=None).wait()


@contextlib.contextmanager
def tcp_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Its port; what speaks no gRPC. `serve` has each connection until it returns."""

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            served.append(connection)
            with connection, contextlib.suppress(OSError):
                serve(connection)

    served: list[socket.socket] = []
    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            for one in (listener, *served):
                with contextlib.suppress(OSError):  # it is closed
                    one.shutdown(socket.SHUT_RDWR)
            thread.join(20)


def closes(connection: socket.socket) -> None:
    """At once."""


def keeps_silent(connection: socket.socket) -> None:
    """Until the other one leaves."""
    while connection.recv(65536):
        pass


def speaks_http1(connection: socket.socket) -> None:
    """Whatever it is asked."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


def speaks_nonsense(connection: socket.socket) -> None:
    """Frames of no protocol."""
    connection.recv(65536)
    connection.sendall(b"\xff" * 64)
