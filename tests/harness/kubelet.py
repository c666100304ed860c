"""The kubelet's gRPC probe, in Python: what pkg/probe/grpc/grpc.go of Kubernetes asks, decides and says.

One time-out for the connection and the answer together. Only SERVING is a success; there is no third result.
"""

import time
from typing import Final, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_OPTIONS: Final = (("grpc.primary_user_agent", "kube-probe/1.34"),)


class Result(NamedTuple):
    """Whether the probe succeeded, and the event's text when it did not."""

    success: bool
    message: str = ""


def probe(host: str, port: int, service: str = "", timeout_s: float = 1.0) -> Result:
    """As `grpc: {port, service}` and `timeoutSeconds` of a probe."""
    deadline = time.monotonic() + timeout_s
    address = f"{host}:{port}"
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout_s)
        except grpc.FutureTimeoutError:
            return Result(False, f'timeout: failed to connect service "{address}" within {timeout_s:g}s')
        request = health_pb2.HealthCheckRequest(service=service)
        left = max(deadline - time.monotonic(), 0.0)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=left)
        except grpc.RpcError as error:
            return Result(False, _why(error.code(), error.details(), timeout_s))
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return Result(True)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return Result(False, f'service unhealthy (responded with "{name}")')


def _why(code: grpc.StatusCode, details: str, timeout_s: float) -> str:
    if code is grpc.StatusCode.UNIMPLEMENTED:
        protocol = "the grpc health protocol (grpc.health.v1.Health)"
        return f"error: this server does not implement {protocol}: {details}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"timeout: health rpc did not complete within {timeout_s:g}s"
    return f"error: health rpc probe failed: {code.name}: {details}"
