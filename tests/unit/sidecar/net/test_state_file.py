"""A file that is whole at any moment, and whose troubles are said once."""

import logging
from pathlib import Path

import pytest

from sidecar.net import state_file
from sidecar.net.state_file import StateFile


def test_what_was_written_is_read_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert StateFile(path).read() is None
    for content in (b"first", b"second"):
        StateFile(path).write(content)
        assert StateFile(path).read() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    StateFile(path).write(b"old")

    def torn(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", torn)
    StateFile(path).write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_trouble_is_said_once_until_it_is_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "headgate")
    file = StateFile(tmp_path / "absent" / "state.json")
    file.write(b"a")
    file.write(b"b")
    assert len(caplog.records) == 1
    (tmp_path / "absent").mkdir()
    file.write(b"c")
    assert file.read() == b"c"
    (tmp_path / "absent" / "state.json").unlink()
    (tmp_path / "absent").rmdir()
    file.write(b"d")
    assert len(caplog.records) == 2


def test_what_is_no_state_of_ours_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "MAX_BYTES", 4)
    path = tmp_path / "state.json"
    path.write_bytes(b"12345")
    assert StateFile(path).read() is None
    path.write_bytes(b"1234")
    assert StateFile(path).read() == b"1234"
