"""Log lines go out in order and from another thread; nobody waits for their reader."""

import logging
import os
import threading
from collections.abc import Iterator

import pytest

from sidecar.net.lines import LineWriter

PATIENCE_S = 10.0  # nothing here takes that long unless it is broken


class Pipe:
    """Where lines go, and who reads them, when told to."""

    def __init__(self) -> None:
        self.reader, self.fd = os.pipe()
        self._open = {self.reader, self.fd}

    def read(self, size: int) -> bytes:
        """Exactly so many bytes; waits for them."""
        data = b""
        while len(data) < size:
            piece = os.read(self.reader, size - len(data))
            assert piece, "ended early"
            data += piece
        return data

    def close(self, *fds: int) -> None:
        for fd in set(fds or self._open) & self._open:
            os.close(fd)
            self._open.discard(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


class Said(logging.Handler):
    """What was complained of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []
        self.any = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.any.set()


@pytest.fixture
def said() -> Iterator[Said]:
    said = Said()
    logger = logging.getLogger("headgate.lines")
    logger.addHandler(said)
    yield said
    logger.removeHandler(said)


def never() -> bytes:
    raise AssertionError("the batch was taken from its owner")


def test_lines_are_written_in_order(pipe: Pipe) -> None:
    writer = LineWriter(pipe.fd)
    for i in range(100):
        line = b"%d\n" % i
        writer.offer(lambda line=line: line)  # type: ignore[misc]
        assert pipe.read(len(line)) == line
    writer.close(PATIENCE_S)


def test_nothing_to_write_is_nothing(pipe: Pipe) -> None:
    writer = LineWriter(pipe.fd)
    for _ in range(10):
        writer.offer(lambda: b"")
    writer.offer(lambda: b"a")
    writer.close(PATIENCE_S)
    assert pipe.read(1) == b"a"


def test_what_was_offered_is_written_before_the_end(pipe: Pipe) -> None:
    writer = LineWriter(pipe.fd)
    writer.offer(lambda: b"last\n")
    writer.close(PATIENCE_S)
    pipe.close(pipe.fd)
    assert os.read(pipe.reader, 100) == b"last\n"


def stuck(pipe: Pipe) -> tuple[LineWriter, bytes]:
    """A writer in the middle of a batch that its reader does not take."""
    writer = LineWriter(pipe.fd)
    batch = b"x" * 1_000_000
    writer.offer(lambda: batch)
    assert pipe.read(1) == b"x"  # it has begun, and the pipe does not hold the rest
    return writer, batch[1:]


def test_a_stuck_reader_holds_up_nobody_and_one_batch(pipe: Pipe) -> None:
    writer, rest = stuck(pipe)
    writer.offer(lambda: b"next")
    for _ in range(10):
        writer.offer(never)
    assert pipe.read(len(rest)) == rest
    assert pipe.read(4) == b"next"
    writer.close(PATIENCE_S)


@pytest.mark.parametrize("waiting", [False, True])
def test_the_end_does_not_wait_for_a_stuck_reader(pipe: Pipe, said: Said, waiting: bool) -> None:
    writer, _ = stuck(pipe)
    if waiting:
        writer.offer(lambda: b"next")
    closing = threading.Thread(target=writer.close, args=(0.01,))
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    pipe.close(pipe.reader)
    writer._thread.join(PATIENCE_S)  # and once the reader is gone, so is the thread
    assert not writer._thread.is_alive()


def test_a_reader_that_left_is_mentioned_once_and_survived(pipe: Pipe, said: Said) -> None:
    pipe.close(pipe.reader)
    writer = LineWriter(pipe.fd)
    writer.offer(lambda: b"lost")
    assert said.any.wait(PATIENCE_S)
    writer.offer(lambda: b"lost too")
    writer.close(PATIENCE_S)
    assert not writer._thread.is_alive()
    (message,) = said.messages
    assert "Broken pipe" in message


def test_a_full_disk_is_mentioned_once_and_survived(pipe: Pipe, said: Said) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(fd)
    writer.offer(lambda: b"lost")
    assert said.any.wait(PATIENCE_S)
    os.dup2(pipe.fd, fd)  # somebody made room
    writer.offer(lambda: b"kept")
    writer.close(PATIENCE_S)
    os.close(fd)
    assert pipe.read(4) == b"kept"
    (message,) = said.messages
    assert "No space left" in message
