"""The switch on a clock that jumps, and the resource /fault."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession

from model_pod.config import Address
from model_pod.fake_engine import Pace
from model_pod.fault_switch import Switch, listening
from model_pod.faults import SOUND, Flap, Hang, Refuse, Slow, Status
from tests.harness.clock import run


class Follower:
    """Notes what it is told and when; a port that is taken refuses to open."""

    def __init__(self) -> None:
        self.told: list[tuple[float, object]] = []
        self.taken = False

    async def follow(self, fault: object) -> None:
        self.told.append((asyncio.get_running_loop().time(), fault))
        if self.taken:
            raise OSError("it is taken")


def switched() -> tuple[Switch, Follower]:
    switch, follower = Switch(Pace()), Follower()
    switch.followers.append(follower.follow)
    return switch, follower


@asynccontextmanager
async def turning(switch: Switch):
    task = asyncio.create_task(switch.flap())
    await asyncio.sleep(0)
    yield
    task.cancel()
    await asyncio.wait([task])


def test_pace_and_health_are_those_of_the_fault():
    async def scene() -> list[tuple[float, bool, bool]]:
        switch, _ = switched()
        seen = []
        for fault in (Slow(factor=2.5), Hang(), Hang(health="silent"), Status(), SOUND):
            await switch.set(fault)
            seen.append((switch.pace.factor, switch.pace.moving.is_set(), switch.healthy.is_set()))
        return seen

    assert run(scene()) == [
        (2.5, True, True),
        (1.0, False, True),
        (1.0, False, False),
        (1.0, True, True),
        (1.0, True, True),
    ]


def test_a_flap_turns_by_itself_until_another_fault_is_set():
    async def scene() -> list[tuple[float, object]]:
        switch, follower = switched()
        flap = Flap(up_s=3, down_s=1, fault=Hang())
        async with turning(switch):
            await asyncio.sleep(10)
            follower.told.clear()
            await switch.set(flap)
            await asyncio.sleep(9.5)
            assert (switch.fault, switch.current) == (flap, SOUND)
            await switch.set(Refuse())
            await asyncio.sleep(100)
        return follower.told

    told = run(scene())
    pairs = zip([(0, None), *told], told, strict=False)
    changes = [after for before, after in pairs if after[1] != before[1]]
    hang = Hang()
    assert changes[:4] == [(10, hang), (11, SOUND), (14, hang), (15, SOUND)]
    assert changes[4:] == [(18, hang), (19, SOUND), (19.5, Refuse())]


def test_what_cannot_change_now_is_tried_again_with_the_next_turn():
    async def scene() -> None:
        switch, follower = switched()
        follower.taken = True
        with pytest.raises(OSError, match="taken"):
            await switch.set(Refuse())
        async with turning(switch):
            follower.taken = False
            await switch.set(SOUND)
            assert follower.told[-1][1] is SOUND
            follower.taken = True
            with pytest.raises(OSError, match="taken"):
                await switch.set(Flap(up_s=1, down_s=1, fault=Refuse()))
            follower.taken = False
            await switch.set(Flap(up_s=1, down_s=1, fault=Refuse()))
            await asyncio.sleep(1.5)
            assert switch.current is SOUND

    run(scene())


def test_the_part_of_a_status_begins_anew_with_each_fault():
    async def scene() -> list[bool]:
        switch, _ = switched()
        hits = []
        for _ in range(3):
            await switch.set(Status(rate=0.5))
            hits.append(switch.spread.hits(0.5))
        return hits

    assert run(scene()) == [False, False, False]


def served(scene) -> None:
    """Run `scene(switch, follower, ask)`; `ask(method, body)` gives status and text."""

    async def inside() -> None:
        switch, follower = switched()
        anywhere = Address("127.0.0.1", 0)
        async with asyncio.timeout(10), listening(switch, anywhere) as port, ClientSession() as http:

            async def ask(method: str, body: str | None = None) -> tuple[int, str]:
                async with http.request(method, f"http://127.0.0.1:{port}/fault", data=body) as answer:
                    return answer.status, await answer.text()

            await scene(switch, follower, ask)
        assert switch.current is SOUND
        assert follower.told[-1][1] is SOUND

    asyncio.run(inside())


NONE = (200, '{"kind":"none"}')


def test_a_fault_is_set_shown_and_ended():
    async def scene(switch, follower, ask):
        assert await ask("GET") == NONE
        hang = (200, '{"kind":"hang","health":"silent"}')
        assert await ask("PUT", '{"kind": "hang", "health": "silent"}') == hang
        assert switch.current == follower.told[-1][1] == Hang(health="silent")
        assert await ask("GET") == hang
        assert await ask("DELETE") == await ask("GET") == NONE
        assert switch.current == follower.told[-1][1] == SOUND
        assert (await ask("POST"))[0] == 405
        await ask("PUT", '{"kind": "refuse"}')  # and ends with the listener

    served(scene)


def test_a_bad_fault_changes_nothing():
    async def scene(switch, _, ask):
        await ask("PUT", '{"kind": "slow"}')
        status, text = await ask("PUT", '{"kind": "slow", "factor": 0.5}')
        assert (status, "factor" in text) == (400, True)
        assert (await ask("PUT", "x" * 70_000))[0] == 413
        assert switch.current == Slow(factor=3)

    served(scene)


def test_a_port_that_is_taken_is_said():
    async def scene(switch, follower, ask):
        await ask("PUT", '{"kind": "refuse"}')
        follower.taken = True
        status, text = await ask("DELETE")
        assert (status, "it is taken" in text) == (500, True)
        follower.taken = False
        assert await ask("DELETE") == NONE

    served(scene)
