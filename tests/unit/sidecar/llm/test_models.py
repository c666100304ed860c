"""Names that callers send become labels only when the engine lists them."""

import json

import pytest

from sidecar.llm.models import Catalog


def catalog(*models: object) -> Catalog:
    made = Catalog()
    made.load(json.dumps({"object": "list", "data": models}).encode())
    return made


def test_before_the_engine_has_answered_every_name_is_other() -> None:
    assert Catalog().label("llama") == "other"


def test_listed_names_are_labels_and_adapters_carry_their_parent() -> None:
    found = catalog(
        {"id": "llama", "object": "model", "root": "/models/llama"},
        {"id": "sql", "parent": "llama"},
        {"id": "self", "parent": "self"},
        {"id": "base", "parent": None},
    )
    names = ("llama", "sql", "self", "base", "LLAMA", "", "gpt-4")
    assert [found.label(name) for name in names] == [
        "llama", "llama:sql", "self", "base", "other", "other", "other",
    ]  # fmt: skip
    assert len(found) == 4


def test_a_new_listing_replaces_the_old_one() -> None:
    found = catalog({"id": "old"})
    found.load(b'{"data": [{"id": "new"}]}')
    assert [found.label(name) for name in ("old", "new")] == ["other", "new"]
    assert found.names() == ("new",)


@pytest.mark.parametrize(
    "listing",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"data": {}}',
        b'{"data": [{}]}',
        b'{"data": [{"id": 7}]}',
        b'{"data": [{"id": "\xff"}]}',
        b'{"data": [], "more": ' + b"[" * 100_000,
    ],
    ids=range(9),
)
def test_what_is_no_listing_changes_nothing(listing: bytes) -> None:
    found = catalog({"id": "llama"})
    with pytest.raises(ValueError, match="/v1/models"):
        found.load(listing)
    assert found.label("llama") == "llama"


def test_the_number_of_labels_is_bounded() -> None:
    assert len(catalog(*({"id": str(i)} for i in range(5000)))) == 1000
