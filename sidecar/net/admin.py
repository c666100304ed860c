"""The admin port: a small HTTP server on its own threads.

It shares no thread with the data plane, so that `/live` is answered while the event loop is stuck,
and a slow scrape delays no stream. It is not in the data path: the standard library's server will do,
held within bounds: connections at once, one request each, a time for the whole of it, a body size.
"""

import asyncio
import concurrent.futures
import http.server
import ipaddress
import json as jsonlib
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

from sidecar.clock import SystemClock
from sidecar.net.sockets import remove_stale_socket
from sidecar.values import Address

_CONNECTIONS: Final = 16
_QUIET_S: Final = 5.0  # longest wait for one read or write
_WHOLE_S: Final = 15.0  # longest life of a connection, against peers that drip
_SWEEP_S: Final = 0.25  # how often lives are checked, and how long stop may take
_MAX_BODY: Final = 64 * 1024
_READING: Final = ("GET", "HEAD")
_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

T = TypeVar("T")
log = logging.getLogger("headgate.admin")


class AdminReply(NamedTuple):
    """What a handler answers."""

    status: int
    body: bytes
    content_type: str


# Takes the query (the last value of each name) and the body; runs on a thread of the admin port.
Handler = Callable[[dict[str, str], bytes], AdminReply]
Routes = Mapping[tuple[str, str], Handler]  # by method and path


def text(body: str, status: int = 200) -> AdminReply:
    """A reply for people."""
    return AdminReply(status, body.encode() + b"\n", "text/plain; charset=utf-8")


def json(value: object, status: int = 200) -> AdminReply:
    """A reply for programs, indented for people."""
    return AdminReply(status, jsonlib.dumps(value, indent=2).encode() + b"\n", "application/json")


def on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], T], timeout_s: float = 1.0) -> T:
    """Run `call` on the data plane's loop, from an admin thread.

    Raises TimeoutError when the loop does not get to it in time; then it is not run later either.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(run)
    except RuntimeError as error:
        raise TimeoutError("the event loop has ended") from error
    try:
        return future.result(timeout_s)
    except TimeoutError:
        future.cancel()
        raise


def comes_true(loop: asyncio.AbstractEventLoop, event: asyncio.Event, within_s: float) -> bool:
    """Whether `event` of the data plane's loop is set in time; waits for it in an admin thread."""
    future = asyncio.run_coroutine_threadsafe(event.wait(), loop)
    try:
        return future.result(within_s)
    except (TimeoutError, concurrent.futures.CancelledError):
        future.cancel()
        return False


class Admin:
    """Serves `routes` at `address`, which may have port 0 or be a unix socket."""

    def __init__(
        self, address: Address, routes: Routes, now: Callable[[], float] = SystemClock.now
    ) -> None:
        self._address = address
        self._routes = routes
        self._now = now
        self._server: _Server | None = None

    def start(self) -> None:
        """Listen, and serve from a thread of its own. Raises OSError when the address is taken."""
        try:
            server = self._server = _Server(self._address, self._routes, self._now)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {self._address}: {error.strerror}") from None
        threading.Thread(target=server.serve_forever, args=(_SWEEP_S,), name="admin", daemon=True).start()

    def stop(self) -> None:
        """Close the listener; connections end by themselves. Safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        if self._address.path:
            remove_stale_socket(self._address.path)

    @property
    def port(self) -> int:
        """The TCP port it listens on; 0 when it does not."""
        if self._server is None or self._address.path:
            return 0
        port: int = self._server.server_address[1]
        return port


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: Address, routes: Routes, now: Callable[[], float]) -> None:
        self.routes = routes
        self._now = now
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        self._started: dict[socket.socket, float] = {}
        where: tuple[str, int] | str = (address.host, address.port)
        if address.path:
            self.address_family, where = socket.AF_UNIX, address.path
            remove_stale_socket(address.path)
        elif ":" in address.host:
            self.address_family = socket.AF_INET6
        super().__init__(where, _Request)  # type: ignore[arg-type]  # TCPServer binds what its family wants

    def process_request(self, request: socket.socket, client_address: Any) -> None:  # type: ignore[override]
        if not self._slots.acquire(blocking=False):
            request.setblocking(False)
            try:
                request.send(_BUSY)
            finally:
                self.shutdown_request(request)
            return
        self._started[request] = self._now()
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread to be had
            self._release(request)
            raise

    def process_request_thread(self, request: socket.socket, client_address: Any) -> None:  # type: ignore[override]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release(request)

    def service_actions(self) -> None:
        """Called by serve_forever after each connection and each pause."""
        limit = self._now() - _WHOLE_S
        for request, started in self._started.copy().items():
            if started < limit:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:
                    log.debug("an admin connection ended by itself")

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("an admin connection broke", exc_info=True)

    def _release(self, request: socket.socket) -> None:
        self._started.pop(request, None)
        self._slots.release()


class _Request(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _QUIET_S

    def answer(self) -> None:
        """Every method comes here."""
        try:
            url = urlsplit(self.path)
            query = dict(parse_qsl(url.query, keep_blank_values=True, max_num_fields=64))
        except ValueError:
            self.send_error(400, "the target is not a URL")
            return
        body = self._body()
        if body is None:
            return
        routes = self.server.routes
        handler = routes.get(("GET" if self.command == "HEAD" else self.command, url.path))
        if handler is not None and self.command not in _READING and not self._is_local():
            self._send(json({"error": "only from this machine"}, 403))
            return
        if handler is not None:
            self._send(self._call(handler, query, body))
            return
        allowed = ", ".join(method for method, path in routes if path == url.path)
        if allowed:
            self._send(json({"error": f"use {allowed}"}, 405), ("allow", allowed))
        else:
            paths = sorted({path for _, path in routes})
            self._send(json({"error": "no such path", "paths": paths}, 404))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = answer

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Also called by the base class for requests it cannot read."""
        self._send(json({"error": message or "bad request"}, code))

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)

    def _is_local(self) -> bool:
        """Whoever may look at a pod over the network may not change it."""
        peer = self.client_address
        if not isinstance(peer, tuple):
            return True
        address = ipaddress.ip_address(peer[0])
        # A listener of both families sees 127.0.0.1 as ::ffff:127.0.0.1.
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    def _body(self) -> bytes | None:
        length = self.headers.get("content-length", "0")
        if "transfer-encoding" in self.headers or not (length.isascii() and length.isdigit()):
            self.send_error(400, "send a body with content-length")
            return None
        if len(length) > 9 or int(length) > _MAX_BODY:
            self.send_error(413, f"the body is larger than {_MAX_BODY} bytes")
            return None
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return None
        return body

    def _call(self, handler: Handler, query: dict[str, str], body: bytes) -> AdminReply:
        try:
            return handler(query, body)
        except TimeoutError:
            return json({"error": "the data plane does not answer"}, 503)
        except Exception:
            log.exception("%s %s failed", self.command, urlsplit(self.path).path)
            return json({"error": "internal error; see the log"}, 500)

    def _send(self, reply: AdminReply, *headers: tuple[str, str]) -> None:
        self.close_connection = True
        self.send_response_only(reply.status)
        for name, value in (
            ("content-type", reply.content_type),
            ("content-length", str(len(reply.body))),
            ("cache-control", "no-store"),
            ("connection", "close"),
            *headers,
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
