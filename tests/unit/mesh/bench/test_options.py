"""Reading of command lines."""

import pytest
import typer

from mesh.bench.options import check_known


def test_what_there_is_passes() -> None:
    check_known("--only", ["a", "b"], {"a": 1, "b": 2, "c": 3})
    check_known("--only", None, ["a"])


def test_what_there_is_not_is_named_with_what_there_is() -> None:
    with pytest.raises(typer.BadParameter, match="'d' is none of a, b"):
        check_known("--only", ["a", "d"], ["a", "b"])
