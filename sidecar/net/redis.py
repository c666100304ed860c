"""What a sidecar uses of Redis: a channel that one talks and listens on, and a script that is run.

Connections of redis-py, without its retries: whatever fails raises here at once, and who uses it opens
another. A listening connection that died without a word is noticed by asking for a sign of life.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis as Client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.settings import Redis

_WITHIN_S: Final = 5.0  # for one call. Nobody waits for it, so a busy event loop must not end a connection
_QUIET_S: Final = 10.0  # without any message: is the server still there?


class Channel:
    """`name` at the Redis that is configured; ConfigError when there is no such URL. Connects in `open`."""

    def __init__(self, redis: Redis, name: str, quiet_s: float = _QUIET_S) -> None:
        self._name = name
        self._quiet_s = quiet_s
        self._client = _client(redis)
        self._pubsub = self._client.pubsub()
        self._heard = 0.0
        self._asked = False

    async def open(self) -> None:
        """Listen from now on."""
        await self._pubsub.subscribe(self._name)
        if await self._pubsub.get_message(timeout=_WITHIN_S) is None:
            raise TimeoutError("no answer to SUBSCRIBE")
        self._heard = asyncio.get_running_loop().time()

    async def publish(self, message: bytes) -> None:
        """Tell everybody who listens, oneself included."""
        await self._client.publish(self._name, message)

    async def hear(self, within_s: float) -> bytes | None:
        """The next message, if there is one within this time."""
        found: dict[str, Any] | None = await self._pubsub.get_message(timeout=within_s)
        now = asyncio.get_running_loop().time()
        if found is not None:
            self._heard, self._asked = now, False
            return found["data"] if found["type"] == "message" else None
        if now - self._heard > self._quiet_s:
            if self._asked:
                raise TimeoutError("Redis has gone silent")
            self._heard, self._asked = now, True
            await self._pubsub.ping()
        return None

    async def close(self) -> None:
        """Both connections."""
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]
        await self._client.aclose()


class Script:
    """`source` in Lua on `keys`, at the Redis that is configured. Connects when it is run."""

    def __init__(self, redis: Redis, source: str, keys: Sequence[str]) -> None:
        self._source = source
        self._digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self._keys = keys
        self._client = _client(redis)

    async def run(self, arguments: Sequence[bytes]) -> list[Any]:
        """What it returns; one call, and one more where the server does not know the script yet."""
        rest = (len(self._keys), *self._keys, *arguments)
        try:
            result: list[Any] = await self._client.execute_command("EVALSHA", self._digest, *rest)  # type: ignore[no-untyped-call]
        except NoScriptError:
            result = await self._client.execute_command("EVAL", self._source, *rest)  # type: ignore[no-untyped-call]
        return result

    async def close(self) -> None:
        """Its connection."""
        await self._client.aclose()


def _client(redis: Redis) -> Client:
    # RESP2: each server speaks it, and a subscription carries nothing else.
    settings: dict[str, Any] = {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": _WITHIN_S,
        "socket_timeout": _WITHIN_S,
    }
    try:
        return Client.from_url(_url(redis), **settings)
    except ValueError as error:
        raise ConfigError("redis.url_file" if redis.url_file else "redis.url", str(error)) from None


def _url(redis: Redis) -> str:
    """As it is now: a mounted secret changes without a word."""
    if redis.url is not None:
        return redis.url
    assert redis.url_file is not None
    try:
        return Path(redis.url_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise ConfigError("redis.url_file", f"cannot be read: {why}") from None
