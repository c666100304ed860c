"""Stand-ins for pods, for tests whose subject is what stands in front of them.

They speak what Envoy sees of a sidecar, HTTP/1.1 and grpc.health.v1 on a second port, and answer
as they are told.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mesh.gateway import Address, Sidecar
from tests.harness.processes import HOST, free_ports

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class StandinPod:
    """One pod: where it is, how it answers a POST, and what it was asked."""

    sidecar: Sidecar
    answer: Answer
    heads: list[dict[str, str]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.heads.append({name.lower(): value for name, value in request.headers.items()})
        return await self.answer(request)


def standin_pods(answers: Sequence[Answer]) -> list[StandinPod]:
    """One for each answer, on ports of their own; nothing listens yet."""
    ports = iter(free_ports(2 * len(answers)))
    return [StandinPod(Sidecar(Address(HOST, next(ports)), next(ports)), answer) for answer in answers]


@contextlib.contextmanager
def healthy(pods: Sequence[StandinPod]) -> Iterator[None]:
    """Each pod's health port says SERVING."""
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for pod in pods:
        server.add_insecure_port(f"{HOST}:{pod.sidecar.health_port}")
    server.start()
    try:
        yield
    finally:
        server.stop(grace=None).wait()


@contextlib.asynccontextmanager
async def serving(pods: Sequence[StandinPod]) -> AsyncIterator[None]:
    """Each pod answers requests."""
    async with contextlib.AsyncExitStack() as stack:
        for pod in pods:
            app = web.Application(client_max_size=32 * 1024 * 1024)
            app.router.add_route("*", "/{path:.*}", pod.handle)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, pod.sidecar.address.host, pod.sidecar.address.port).start()
        yield
