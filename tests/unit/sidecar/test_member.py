"""A pod as a member of its mesh: its keys, where peers come in, and whom it comes to know."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar.clock import SystemClock
from sidecar.config import decode
from sidecar.errors import ConfigError
from sidecar.member import Member
from sidecar.net.connections import LoopDialer
from sidecar.plane import Plane
from tests.harness.clock import run

FIRST, SECOND = b"first-key-of-the-mesh", b"second-key-of-the-mesh"


class Pod:
    """One member, with its key in a file; `mesh` is added to that section."""

    def __init__(
        self, folder: Path, name: str = "pod-1", mesh: str = "", listen: str = "127.0.0.1:0"
    ) -> None:
        self.secret = folder / "secret"
        if not self.secret.exists() and not self.secret.is_symlink():
            self.secret.write_bytes(FIRST)
        config = decode(
            f"listen: '{listen}'\nengine: {{address: '127.0.0.1:8000'}}\n"
            f"redis: {{url: 'redis://127.0.0.1:1/0'}}\n"
            f"mesh: {{pod: {name}, secret_file: '{self.secret}'{mesh}}}",
            {},
        )
        assert config.mesh is not None
        self.plane = Plane(config, "test", SystemClock(), LoopDialer())
        self.plane.lifecycle.serving = True
        self.member = Member(self.plane, config, config.mesh, None)

    @property
    def keys(self) -> tuple[bytes, ...]:
        return self.plane.hop.keys

    def rewrite(self, content: bytes) -> None:
        self.secret.write_bytes(content)
        self.member.look_for_changes()


class TestKeys:
    def test_they_are_read_at_the_start(self, tmp_path: Path) -> None:
        assert Pod(tmp_path).keys == (FIRST,)

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (None, "mesh.secret_file: cannot be read: No such file or directory"),
            (b"", "mesh.secret_file: has 0 keys"),
            (b"short", "mesh.secret_file: has a key shorter"),
        ],
    )
    def test_without_them_nothing_starts(self, tmp_path: Path, content: bytes | None, problem: str) -> None:
        secret = tmp_path / "secret"
        if content is None:
            secret.symlink_to("nowhere")
        else:
            secret.write_bytes(content)
        with pytest.raises(ConfigError) as raised:
            Pod(tmp_path)
        assert str(raised.value).startswith(problem)

    def test_they_are_exchanged_through_the_file(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        pod = Pod(tmp_path)
        pod.member.look_for_changes()
        for content in (FIRST + b"\n" + SECOND, SECOND + b"\n" + FIRST, SECOND):
            pod.rewrite(content)
            assert pod.keys == tuple(content.split(b"\n"))
        assert not any(key.decode() in caplog.text for key in (FIRST, SECOND))

    @pytest.mark.parametrize("content", [b"", b"short", b"\n".join([FIRST, SECOND, FIRST])])
    def test_a_bad_file_changes_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
    ) -> None:
        pod = Pod(tmp_path)
        pod.rewrite(content)
        assert pod.keys == (FIRST,)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "the old keys stay in force" in caplog.text
        pod.rewrite(SECOND)
        assert pod.keys == (SECOND,)

    def test_a_file_that_is_gone_changes_nothing(self, tmp_path: Path) -> None:
        pod = Pod(tmp_path)
        pod.secret.unlink()
        pod.member.look_for_changes()
        assert pod.keys == (FIRST,)


@asynccontextmanager
async def started(pod: Pod) -> AsyncIterator[str]:
    """It is a member within the block; its address."""
    begun: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            begun += await pod.member.start(tasks)
            yield pod.plane.heartbeat().address
            for task in begun:
                task.cancel()
    finally:
        pod.member.stop_accepting()
        for client in list(pod.plane.context.clients):
            client.abort()
        await asyncio.sleep(0.01)  # let connections end


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):  # of the loop's time
        while not condition():
            await asyncio.sleep(0.1)


class TestWhere:
    @pytest.mark.parametrize(
        ("listen", "mesh", "host"),
        [
            ("127.0.0.1:0", "", "127.0.0.1"),
            ("127.0.0.1:0", ", advertise: 'pod-1.pods:80'", "pod-1.pods"),
            ("0.0.0.0:0", ", listen: '127.0.0.1:0'", "127.0.0.1"),
            ("127.0.0.1:0", ", listen: '127.0.0.1:0', advertise: '10.9.8.7:80'", "10.9.8.7"),
            ("0.0.0.0:0", ", listen: '127.0.0.1:0', advertise: '[2001:db8::1]:80'", "[2001:db8::1]"),
        ],
    )
    def test_peers_reach_it_at_the_advertised_host_and_its_own_port(
        self, tmp_path: Path, listen: str, mesh: str, host: str
    ) -> None:
        async def main() -> None:
            pod = Pod(tmp_path, mesh=mesh, listen=listen)
            assert pod.plane.heartbeat().address == ""
            async with started(pod) as address:
                name, _, port = address.rpartition(":")
                assert name == host
                _, writer = await asyncio.open_connection("127.0.0.1", int(port))
                await until(lambda: [client.is_mesh for client in pod.plane.context.clients] == [True])
                writer.close()

        run(main())

    def test_a_pod_that_cannot_be_reached_says_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            pod = Pod(tmp_path, listen=f"unix:{tmp_path}/listen")
            async with started(pod) as address:
                assert address == ""

        run(main())
        assert "peers cannot reach this pod" in caplog.text

    def test_an_address_that_cannot_be_had_is_an_error(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with started(Pod(tmp_path, mesh=", listen: '127.0.0.1:0'")) as address:
                second = Pod(tmp_path, "pod-2", f", listen: '{address}'")
                with pytest.raises(ExceptionGroup) as raised:
                    async with started(second):
                        raise AssertionError("it has started")
                assert raised.group_contains(OSError, match="in use")

        run(main())


class TestMeeting:
    def test_listed_pods_come_to_know_each_other_and_not_themselves(self, tmp_path: Path) -> None:
        async def main() -> None:
            first = Pod(tmp_path, "pod-1", ", listen: '127.0.0.1:0'")
            async with started(first) as address:
                second = Pod(tmp_path, "pod-2", f", peers: ['{address}']")
                async with started(second):
                    await until(lambda: second.plane.fleet.peers)
                    known = second.plane.fleet.peers
                    assert {pod: peer.name for pod, peer in known.items()} == {"pod-1": address}
                    assert known["pod-1"].why.startswith("the event loop is"), "its own words: nobody ticks"
                    assert first.plane.fleet.peers == {}, "nobody has told it"

        run(main())

    def test_a_stranger_learns_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        async def main() -> None:
            first = Pod(tmp_path, "pod-1", ", listen: '127.0.0.1:0'")
            async with started(first) as address:
                second = Pod(tmp_path, "pod-2", f", peers: ['{address}']")
                first.rewrite(SECOND)
                async with started(second):
                    await until(lambda: "does not answer: it answers 403" in caplog.text)
                    assert second.plane.fleet.peers == {}

        run(main())
