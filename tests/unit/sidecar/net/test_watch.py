"""What counts as a change of a file."""

import os
from pathlib import Path

import pytest

from sidecar.net.watch import FileWatch


def config_map(volume: Path, version: str, content: str) -> None:
    """Publish `content` as the kubelet does: a new directory, then one rename of `..data`."""
    (volume / version).mkdir(parents=True)
    (volume / version / "sidecar.yaml").write_text(content)
    (volume / "..data_tmp").symlink_to(version)
    os.rename(volume / "..data_tmp", volume / "..data")
    if not (volume / "sidecar.yaml").is_symlink():
        (volume / "sidecar.yaml").symlink_to("..data/sidecar.yaml")


def test_a_config_map_swap_is_a_change(tmp_path: Path) -> None:
    config_map(tmp_path, "..v1", "a: 1")
    watch = FileWatch(tmp_path / "sidecar.yaml")
    assert watch.changed() is None
    config_map(tmp_path, "..v2", "a: 2")
    assert watch.changed() == b"a: 2"
    assert watch.changed() is None


def test_a_swap_to_the_same_content_is_none(tmp_path: Path) -> None:
    config_map(tmp_path, "..v1", "a: 1")
    watch = FileWatch(tmp_path / "sidecar.yaml")
    config_map(tmp_path, "..v2", "a: 1")
    assert watch.changed() is None


def test_a_touch_is_none_and_an_edit_is_one(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"a: 1")
    watch = FileWatch(path)
    os.utime(path, ns=(1, 1))
    assert watch.changed() is None
    path.write_bytes(b"a: 2")
    os.utime(path, ns=(2, 2))
    assert watch.changed() == b"a: 2"


def test_a_change_before_the_watch_began_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"new")
    assert FileWatch(path, known=b"old").changed() == b"new"
    assert FileWatch(path, known=b"new").changed() is None


def test_a_missing_file_is_reported_once_and_may_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"1")
    watch = FileWatch(path)
    path.unlink()
    assert [watch.changed() for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    path.write_bytes(b"2")
    assert watch.changed() == b"2"
    path.unlink()
    assert watch.changed() is None
    assert len(caplog.records) == 2


def test_a_file_that_is_no_configuration_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"1")
    watch = FileWatch(path)
    os.truncate(path, 2**30)
    assert watch.changed() is None
