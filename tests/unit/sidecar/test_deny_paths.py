"""The table of paths that stay inside."""

from sidecar.deny_paths import DENY_PATHS
from sidecar.llm.request import MODEL_PATHS


def test_each_is_a_path_and_stands_once() -> None:
    assert all(path.startswith("/") and not path.endswith("/") for path in DENY_PATHS)
    assert len(set(DENY_PATHS)) == len(DENY_PATHS)


def test_none_covers_what_callers_are_there_for() -> None:
    open_paths = [path.decode() for path in MODEL_PATHS] + ["/v1/models", "/health", "/metrics", "/tokenize"]
    assert [p for p in open_paths if any(p == d or p.startswith(d + "/") for d in DENY_PATHS)] == []
